// Reads package logs: the Go package registry/pkglog is the specification.
import fs from 'node:fs'
import c from 'compact-encoding'
import { decompress } from 'fzstd'
import { hex } from './rpc.mjs'

const dictionary = (ecosystem) =>
  fs.readFileSync(new URL(`../../../registry/pkglog/${ecosystem}.dict`, import.meta.url))

// fold returns {ecosystem, package, lines or versions, artifacts} of the blocks
// of a log.
export function fold (blocks) {
  const h = { start: 0, end: blocks[0].length, buffer: blocks[0] }
  if (c.string.decode(h) !== 'pkgswarm/package-log' || c.uint.decode(h) !== 1) throw new Error('not a package log of format 1')
  const log = { ecosystem: c.string.decode(h), package: c.string.decode(h), lines: [], versions: new Map(), artifacts: [] }
  log.dictionary = dictionary(log.ecosystem)
  let last = Buffer.alloc(0)
  for (const b of blocks.slice(1)) {
    const s = { start: 0, end: b.length, buffer: b }
    const cargo = log.ecosystem === 'cargo'
    const kind = c.uint.decode(s)
    switch (kind) {
      case 1:
      case 2: {
        if (!cargo) {
          last = payload(log, last, s)
          const v = moduleVersion(last)
          log.versions.set(v.version, v)
          break
        }
        const flags = c.uint.decode(s)
        const position = kind === 2 || flags & 1 ? c.uint.decode(s) : log.lines.length
        const line = payload(log, log.lines[kind === 1 ? position - 1 : position] || Buffer.alloc(0), s)
        log.lines.splice(position, kind === 1 ? 0 : 1, line)
        break
      }
      case 3:
        log.artifacts.push({ version: c.string.decode(s), key: c.fixed32.decode(s), byteLength: c.uint.decode(s), digest: c.fixed32.decode(s) })
        break
      case 4:
        if (c.uint.decode(s) & 1) {
          log.lines = []
          log.versions.clear()
        } else if (cargo) log.lines.splice(c.uint.decode(s), 1)
        else log.versions.delete(c.string.decode(s))
        break
      case 5: {
        const old = log.lines
        log.lines = []
        for (let n = c.uint.decode(s); n > 0; n--) {
          const first = c.uint.decode(s)
          log.lines.push(...old.slice(first, first + c.uint.decode(s)))
        }
        break
      }
      default:
        throw new Error('event of kind ' + kind)
    }
  }
  return log
}

// plain returns a folded log as plain JSON.
export function plain (l) {
  return {
    ecosystem: l.ecosystem,
    package: l.package,
    file: hex(Buffer.concat(l.lines.flatMap((b) => [b, Buffer.from('\n')]))),
    versions: [...l.versions.values()].map((v) => ({ version: v.version, info: hex(v.info), mod: hex(v.mod), zipHash: hex(v.zipHash) })),
    artifacts: l.artifacts.map((a) => ({ version: a.version, key: hex(a.key), byteLength: a.byteLength, digest: hex(a.digest) }))
  }
}

function moduleVersion (b) {
  const s = { start: 0, end: b.length, buffer: b }
  return {
    version: c.string.decode(s),
    time: c.int.decode(s),
    modHash: c.fixed32.decode(s),
    zipHash: c.fixed32.decode(s),
    info: c.buffer.decode(s),
    mod: c.buffer.decode(s)
  }
}

function payload (log, base, s) {
  const form = c.uint.decode(s)
  const body = s.buffer.subarray(s.start, s.end)
  if (form === 0) return body
  if (form === 1) return Buffer.from(decompress(body))
  const d = { start: 0, end: body.length, buffer: body }
  const parts = []
  c.uint.decode(d)
  let next = log.dictionary.length
  while (d.start < d.end) {
    const head = c.uint.decode(d)
    const n = Math.floor(head / 4)
    switch (head % 4) {
      case 0: {
        const at = next + c.int.decode(d)
        const inBase = at >= log.dictionary.length
        parts.push(inBase ? base.subarray(at - log.dictionary.length, at - log.dictionary.length + n) : log.dictionary.subarray(at, at + n))
        next = at + n
        break
      }
      case 1:
        parts.push(body.subarray(d.start, d.start + n))
        d.start += n
        next += n
        break
      case 2:
        parts.push(Buffer.from(body.subarray(d.start, d.start + n).toString('hex')))
        d.start += n
        next += 2 * n
        break
      default:
        throw new Error('delta instruction ' + (head % 4))
    }
  }
  return Buffer.concat(parts)
}
