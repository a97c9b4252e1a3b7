// The reference's side of integration/bench/reference: every method does a piece
// of work and says how much it was and what processor time (user + system, of
// all threads) and wall time it took, in seconds.
import fs from 'node:fs'
import path from 'node:path'
import Corestore from 'corestore'
import Hyperbee from 'hyperbee'
import { serve, tmpdir, hex, unhex } from './lib/rpc.mjs'

const store = new Corestore(tmpdir())
await store.ready()
let fresh = 0
const kept = new Map()

async function core () {
  const c = store.get({ name: 'bench ' + fresh++ })
  await c.ready()
  return c
}

async function measure (work, f) {
  const wall = process.hrtime.bigint()
  const before = process.cpuUsage()
  await f()
  const { user, system } = process.cpuUsage(before)
  return { work, cpu: (user + system) / 1e6, wall: Number(process.hrtime.bigint() - wall) / 1e9 }
}

// Blocks that do not compress, the same on both sides: xorshift32 from i + 1.
function block (size, i) {
  const b = Buffer.alloc(size)
  let x = i + 1
  for (let j = 0; j < size; j++) {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    b[j] = x
  }
  return b
}
const many = (n, size) => Array.from({ length: n }, (_, i) => block(size, i))
const key = (i) => Buffer.from('key ' + String((i * 7919) % 1000003).padStart(9, '0'))
const value = (i) => Buffer.from('value ' + i)

async function filled (n) {
  if (!kept.has(n)) {
    const c = await core()
    const db = new Hyperbee(c, { extension: false })
    await db.ready()
    for (let i = 0; i < n;) {
      const b = db.batch()
      for (let k = 0; k < 1000 && i < n; k++, i++) await b.put(key(i), value(i))
      await b.flush()
    }
    kept.set(n, c)
  }
  return kept.get(n)
}

// A session of its own: nothing is cached, as after opening.
async function bee (n) {
  const db = new Hyperbee((await filled(n)).session(), { extension: false })
  await db.ready()
  return db
}

function size (dir) {
  let sum = 0
  for (const e of fs.readdirSync(dir, { withFileTypes: true })) {
    const p = path.join(dir, e.name)
    sum += e.isDirectory() ? size(p) : fs.statSync(p).blocks * 512
  }
  return sum
}

function * indexFiles (dir) {
  const entries = fs.readdirSync(dir, { withFileTypes: true })
  entries.sort((a, b) => a.name < b.name ? -1 : 1)
  for (const e of entries) {
    if (e.isDirectory()) yield * indexFiles(path.join(dir, e.name))
    else if (e.name !== 'config.json') yield path.join(dir, e.name)
  }
}

function * indexLines (dir) {
  for (const file of indexFiles(dir)) yield * fs.readFileSync(file, 'utf8').split('\n').filter(Boolean)
}

function shuffled (lines) {
  let x = 1
  for (let i = lines.length - 1; i > 0; i--) {
    x = (x * 16807) % 2147483647
    const j = x % (i + 1)
    ;[lines[i], lines[j]] = [lines[j], lines[i]]
  }
  return lines
}

// What a store takes once it was opened again.
async function settled (dir) {
  const s = new Corestore(dir)
  await s.ready()
  await s.close()
  return size(dir)
}

serve({
  async appendOne ({ n }) {
    const c = await core()
    const blocks = many(n, 64)
    return measure(n, async () => {
      for (const b of blocks) await c.append(b)
    })
  },
  async appendBatch ({ n, batch, size }) {
    const c = await core()
    const blocks = many(batch, size)
    return measure(n * batch, async () => {
      for (let i = 0; i < n; i++) await c.append(blocks)
    })
  },
  async getRandom ({ n }) {
    const c = await core()
    await c.append(many(20000, 64))
    let x = 1
    return measure(n, async () => {
      for (let i = 0; i < n; i++) {
        x = (x * 16807) % 2147483647
        await c.get(x % 20000)
      }
    })
  },
  async stream ({ n }) {
    const c = await core()
    for (let i = 0; i < n; i += 16) await c.append(many(16, 65536))
    return measure(n * 65536, async () => {
      for await (const b of c.createReadStream()) if (b.byteLength !== 65536) throw new Error('short')
    })
  },
  async disk ({ n }) {
    const dir = tmpdir()
    const s = new Corestore(dir)
    const c = s.get({ name: 'disk' })
    await c.ready()
    for (let i = 0; i < n; i += 1000) await c.append(Array.from({ length: 1000 }, (_, k) => block(200, i + k)))
    await s.close()
    return { work: (await settled(dir)) - n * 200, cpu: 0, wall: 0 }
  },
  async fillCores (n) {
    const dir = tmpdir()
    const s = new Corestore(dir)
    const keys = []
    for (let i = 0; i < n; i++) {
      const c = s.get({ name: 'core ' + i })
      await c.ready()
      await c.append(block(64, i))
      keys.push(c.key)
      await c.close()
    }
    await s.close()
    return { dir, keys: keys.map(hex), bytes: await settled(dir) }
  },
  // Opens the cores that another process has made.
  async openCores ({ dir, keys }) {
    await store.close()
    const s = new Corestore(dir)
    await s.ready()
    const before = process.memoryUsage().rss
    const open = []
    const m = await measure(keys.length, async () => {
      for (const k of keys) {
        const c = s.get({ key: unhex(k) })
        await c.ready()
        open.push(c)
      }
    })
    m.memory = process.memoryUsage().rss - before
    await s.close()
    return m
  },

  async beePut ({ n, batch }) {
    const db = new Hyperbee(await core(), { extension: false })
    await db.ready()
    return measure(n, async () => {
      if (batch === 1) {
        for (let i = 0; i < n; i++) await db.put(key(i), value(i))
        return
      }
      for (let i = 0; i < n;) {
        const b = db.batch()
        for (let k = 0; k < batch && i < n; k++, i++) await b.put(key(i), value(i))
        await b.flush()
      }
    })
  },
  // Imports an index into a store of its own, from opening to closing it: each
  // line is put under its crate and version, in the order of the files. In no
  // order they are read beforehand, since no import would do that.
  async putIndex ({ dir, batch, shuffle }) {
    const lines = shuffle ? shuffled([...indexLines(dir)]) : indexLines(dir)
    let n = 0
    return measure(0, async () => {
      const store = new Corestore(tmpdir())
      const db = new Hyperbee(store.get({ name: 'index' }), { extension: false })
      await db.ready()
      let b = db.batch()
      for (const line of lines) {
        const { name, vers } = JSON.parse(line)
        await b.put(Buffer.from('cargo/' + name + '/' + vers), Buffer.from(line))
        if (++n % batch === 0) {
          await b.flush()
          b = db.batch()
        }
      }
      await b.flush()
      await db.close()
      await store.close()
    })
  },
  async beeGet ({ n, entries }) {
    const db = await bee(entries)
    let x = 1
    return measure(n, async () => {
      for (let i = 0; i < n; i++) {
        x = (x * 16807) % 2147483647
        if ((await db.get(key(x % entries))) === null) throw new Error('missing')
      }
    })
  },
  async beeRange ({ entries }) {
    const db = await bee(entries)
    return measure(entries, async () => {
      let n = 0
      for await (const _ of db.createReadStream()) n++
      if (n !== entries) throw new Error(n + ' entries')
    })
  }
})
