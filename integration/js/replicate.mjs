// A Corestore that replicates over plain TCP and @hyperswarm/secret-stream, as
// the reference implementation does: reads and writes what it is told to.
import net from 'node:net'
import Corestore from 'corestore'
import Hyperbee from 'hyperbee'
import SecretStream from '@hyperswarm/secret-stream'
import crypto from 'hypercore-crypto'
import multisig from 'hypercore/lib/multisig.js'
import Verifier from 'hypercore/lib/verifier.js'
import { serve, tmpdir, hex, unhex } from './lib/rpc.mjs'

const store = new Corestore(tmpdir())
await store.ready()
const cores = new Map()
const sockets = new Set()

function replicate (socket, initiator) {
  socket.setNoDelay(true)
  sockets.add(socket)
  const stream = new SecretStream(initiator, socket)
  stream.on('error', () => {})
  socket.on('error', () => {})
  socket.on('close', () => sockets.delete(socket))
  store.replicate(stream)
}

async function open (key) {
  let core = cores.get(key)
  if (!core) {
    core = store.get({ key: unhex(key) })
    await core.ready()
    cores.set(key, core)
  }
  return core
}

async function keep (core) {
  await core.ready()
  cores.set(hex(core.key), core)
  return hex(core.key)
}

const info = (core) => ({
  key: hex(core.key),
  length: core.length,
  byteLength: core.byteLength,
  fork: core.fork,
  contiguousLength: core.contiguousLength,
  peers: core.peers.length
})

// Two key pairs that sign together.
const pairs = [1, 2].map((n) => crypto.keyPair(Buffer.alloc(32, n)))
let multi = null

// multiAppend signs what the draft, a core with the same blocks, has become.
async function multiAppend (blocks) {
  const { core, draft, verifier } = multi
  await draft.append(blocks.map(unhex))
  const parts = pairs.map((p, i) => ({
    signer: i,
    signature: verifier.sign(draft.state.createTreeBatch(), p),
    patch: 0,
    nodes: null
  }))
  await core.append(blocks.map(unhex), { signature: multisig.assemble(parts) })
}

serve({
  async listen () {
    const server = net.createServer((socket) => replicate(socket, false))
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
    return server.address().port
  },
  connect (port) {
    replicate(net.connect(port, '127.0.0.1'), true)
  },
  disconnect () {
    for (const s of sockets) s.destroy()
  },
  create: (name) => keep(store.get({ name })),

  // A static core of the given blocks.
  async static (blocks) {
    const tmp = store.get({ name: 'scratch ' + Math.random() })
    await tmp.ready()
    await tmp.append(blocks.map(unhex))
    const manifest = { version: 1, quorum: 0, signers: [], prologue: { hash: await tmp.treeHash(), length: tmp.length } }
    const core = store.get({ manifest })
    await core.ready()
    await core.append(blocks.map(unhex), { signature: Buffer.alloc(0) })
    return keep(core)
  },

  // A core that two signers must sign; both are here.
  async multi (blocks) {
    const manifest = { version: 1, quorum: 2, signers: pairs.map((p) => ({ publicKey: p.publicKey })) }
    const core = store.get({ manifest })
    await core.ready()
    const draft = store.get({ name: 'draft ' + Math.random() })
    await draft.ready()
    multi = { core, draft, verifier: Verifier.fromManifest(manifest) }
    await multiAppend(blocks)
    return keep(core)
  },
  multiAppend,

  async append ({ key, blocks }) {
    const core = await open(key)
    await core.append(blocks.map(unhex))
    return info(core)
  },
  // count blocks of size bytes each: their number, repeated.
  async appendMany ({ key, count, size }) {
    const core = await open(key)
    let n = core.length
    while (count > 0) {
      const batch = []
      for (; count > 0 && batch.length < 1000; count--) batch.push(Buffer.alloc(size, String(n++) + ' '))
      await core.append(batch)
    }
    return info(core)
  },
  async truncate ({ key, length }) {
    const core = await open(key)
    await core.truncate(length)
    return info(core)
  },
  async clear ({ key, start, end }) {
    const core = await open(key)
    await core.clear(start, end)
    return info(core)
  },
  async get ({ key, index }) {
    const core = await open(key)
    return hex(await core.get(index, { timeout: 20000 }))
  },
  async seek ({ key, bytes }) {
    const core = await open(key)
    return core.seek(bytes)
  },
  // Waits until the core has that length and fork.
  async waitFor ({ key, length, fork }) {
    const core = await open(key)
    for (let i = 0; i < 2000; i++) {
      await core.update()
      if (core.length === length && core.fork === fork) return info(core)
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    throw new Error('core has length ' + core.length + ' and fork ' + core.fork)
  },
  async download ({ key, start, end }) {
    const core = await open(key)
    await core.download({ start, end }).done()
    return info(core)
  },
  async treeHash ({ key, length }) {
    const core = await open(key)
    return hex(await core.treeHash(length))
  },
  // Bytes written to connections that are open.
  sent: () => [...sockets].reduce((n, s) => n + s.bytesWritten, 0),
  // Processor time of this process so far, in microseconds.
  cpu () {
    const { user, system } = process.cpuUsage()
    return user + system
  },
  async info (key) {
    return info(await open(key))
  },

  async beePut ({ key, count }) {
    const bee = new Hyperbee(await open(key), { keyEncoding: 'utf-8', valueEncoding: 'utf-8' })
    await bee.ready()
    const batch = bee.batch()
    for (let i = 0; i < count; i++) await batch.put('key ' + i, 'value ' + i)
    await batch.flush()
  },
  async beeGet ({ key, name }) {
    const bee = new Hyperbee(await open(key), { keyEncoding: 'utf-8', valueEncoding: 'utf-8', extension: true })
    await bee.ready()
    const node = await bee.get(name, { timeout: 20000 })
    return node && node.value
  },
  // The keys of a range, and how many blocks peers have named in their answers.
  async beeRange ({ key, range }) {
    const bee = new Hyperbee(await open(key), { keyEncoding: 'utf-8', valueEncoding: 'utf-8', extension: true })
    await bee.ready()
    let hints = 0
    const oncache = bee.extension.oncache
    bee.extension.oncache = function (message, from) {
      hints += message.blocks.length
      return oncache.call(this, message, from)
    }
    const keys = []
    for await (const e of bee.createReadStream(range)) keys.push(e.key)
    return { keys, hints }
  }
})
