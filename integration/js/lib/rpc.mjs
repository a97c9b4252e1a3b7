// The Node half of internal/testenv's Node: one request a line on standard
// input, one answer a line on standard output, both JSON.
//
//   {"id": 1, "method": "append", "params": {…}}
//   {"id": 1, "result": …}    or    {"id": 1, "error": "message"}
//
// Requests are carried out one after the other, in order. The program ends when
// standard input does.
import readline from 'node:readline'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

// Byte strings are hex in JSON, null stays null.
export const hex = (b) => (b === null || b === undefined ? null : Buffer.from(b).toString('hex'))
export const unhex = (s) => (s === null || s === undefined ? null : Buffer.from(s, 'hex'))

const scratch = []

// tmpdir makes a directory that is gone when the program ends.
export function tmpdir () {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'pkgswarm-js-'))
  scratch.push(dir)
  return dir
}

process.on('exit', () => {
  for (const dir of scratch) fs.rmSync(dir, { recursive: true, force: true })
})

export async function serve (methods) {
  const lines = readline.createInterface({ input: process.stdin, crlfDelay: Infinity })
  for await (const line of lines) {
    const { id, method, params } = JSON.parse(line)
    let answer
    try {
      if (!Object.hasOwn(methods, method)) throw new Error('no method ' + method)
      answer = { id, result: await methods[method](params) }
    } catch (err) {
      answer = { id, error: err.stack || String(err) }
    }
    if (!process.stdout.write(JSON.stringify(answer) + '\n')) await new Promise((resolve) => process.stdout.once('drain', resolve))
  }
  process.exit(0)
}
