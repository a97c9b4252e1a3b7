// What the reference needs for the work that integration/bench measures. Each
// method returns { cpu, wall } in seconds, for that work alone.
import fs from 'node:fs'
import path from 'node:path'
import v8 from 'node:v8'
import vm from 'node:vm'
import Corestore from 'corestore'
import { serve, tmpdir } from './lib/rpc.mjs'

const dir = tmpdir()
let stores = 0

async function fresh () {
  const store = new Corestore(path.join(dir, String(stores++)))
  await store.ready()
  return store
}

async function timed (work) {
  const c = process.cpuUsage()
  const t = process.hrtime.bigint()
  await work()
  const d = process.cpuUsage(c)
  return { cpu: (d.user + d.system) / 1e6, wall: Number(process.hrtime.bigint() - t) / 1e9 }
}

v8.setFlagsFromString('--expose-gc')
const collect = vm.runInNewContext('gc')

// The memory in use, in bytes, without that of native code.
function memory () {
  collect()
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}

// A block that differs from the others of its core.
function block (i, size) {
  const b = Buffer.alloc(size, i & 0xff)
  b.writeUInt32LE(i)
  return b
}

function * batches ({ count, size, batch }) {
  for (let i = 0; i < count; i += batch) {
    yield Array.from({ length: batch }, (_, k) => block(i + k, size))
  }
}

async function append (params) {
  const store = await fresh()
  const core = store.get({ name: 'log' })
  await core.ready()
  const work = [...batches(params)]
  const used = await timed(async () => {
    for (const blocks of work) await core.append(blocks.length === 1 ? blocks[0] : blocks)
  })
  return { store, core, used }
}

function size (dir) {
  let n = 0
  for (const e of fs.readdirSync(dir, { withFileTypes: true })) {
    const p = path.join(dir, e.name)
    n += e.isDirectory() ? size(p) : fs.statSync(p).blocks * 512
  }
  return n
}

serve({
  async append (params) {
    const { store, used } = await append(params)
    await store.close()
    return used
  },

  async get ({ count, size, reads }) {
    const { store, core } = await append({ count, size, batch: 1000 })
    const used = await timed(async () => {
      for (let i = 0, at = 1; i < reads; i++) {
        at = (at * 1103515245 + 12345) % 2147483648
        await core.get(at % count)
      }
    })
    await store.close()
    return used
  },

  async stream ({ count, size }) {
    const { store, core } = await append({ count, size, batch: 16 })
    const used = await timed(async () => {
      for await (const _ of core.createReadStream()) ; // eslint-disable-line
    })
    await store.close()
    return used
  },

  // disk returns the bytes on disk of a closed store with such a core.
  async disk (params) {
    const { store } = await append(params)
    const at = path.join(dir, String(stores - 1))
    await store.close()
    const again = new Corestore(at) // settles it
    await again.ready()
    await again.close()
    return size(at)
  },

  // openMany opens cores of one block each, in a store that has them.
  async openMany ({ count }) {
    let store = await fresh()
    const at = path.join(dir, String(stores - 1))
    for (let i = 0; i < count; i++) {
      const core = store.get({ name: 'core ' + i })
      await core.ready()
      await core.append('x')
      await core.close()
    }
    await store.close()
    const bytes = size(at)
    store = new Corestore(at)
    await store.ready()
    const before = memory()
    const cores = []
    const used = await timed(async () => {
      for (let i = 0; i < count; i++) {
        const core = store.get({ name: 'core ' + i })
        await core.ready()
        cores.push(core)
      }
    })
    const after = memory()
    for (const c of cores) await c.close()
    await store.close()
    return { ...used, memory: (after - before) / count, disk: bytes / count }
  }
})
