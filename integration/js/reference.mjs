// One Corestore with a fixed primary key and the Hyperbees on it, driven by
// operations: what the other implementation has to agree with.
import { createRequire } from 'node:module'
import Corestore from 'corestore'
import Hyperbee from 'hyperbee'
import Hypercore from 'hypercore'
import c from 'compact-encoding'
import crypto from 'hypercore-crypto'
import { MerkleTree } from 'hypercore/lib/merkle-tree.js'
import Verifier from 'hypercore/lib/verifier.js'
import { serve, tmpdir, hex, unhex } from './lib/rpc.mjs'

const { manifest: encoding, wire } = createRequire(import.meta.url)('hypercore/lib/messages')

let store = null
const cores = new Map()
const reorgs = new Map()
const bees = new Map()

async function open (name) {
  if (!cores.has(name)) {
    const core = store.get({ name })
    await core.ready()
    cores.set(name, core)
  }
  return cores.get(name)
}

async function bee (name) {
  if (!bees.has(name)) {
    const db = new Hyperbee(await open(name), { extension: false })
    await db.ready()
    bees.set(name, db)
  }
  return bees.get(name)
}

function state (core) {
  return {
    key: hex(core.key),
    discoveryKey: hex(core.discoveryKey),
    manifest: hex(c.encode(encoding, core.manifest)),
    length: core.length,
    byteLength: core.byteLength,
    fork: core.fork,
    treeHash: hex(core.state.hash()) // treeHash() of a replica waits for peers
  }
}

// What a serving peer does with a request, encoded as its data message.
async function prove (core, request) {
  const full = { block: null, hash: null, seek: null, upgrade: null, ...request }
  const rx = core.state.storage.read()
  const pending = await MerkleTree.proof(core.state, rx, full)
  const value = full.block ? rx.getBlock(full.block.index) : null
  rx.tryFlush()
  const proof = await pending.settle()
  if (value) proof.block.value = await value
  return hex(c.encode(wire.data, { request: 1, ...proof, manifest: null }))
}

// An operation is ["put", key, value] or ["del", key], in hex; a null value is null.
async function apply (to, [op, key, value]) {
  if (op === 'put') await to.put(unhex(key), unhex(value))
  else await to.del(unhex(key))
}

const entry = (e) => [e.seq, hex(e.key), hex(e.value)]

async function all (stream, show) {
  const out = []
  for await (const e of stream) out.push(show(e))
  return out
}

serve({
  async open (primaryKey) {
    store = new Corestore(tmpdir(), { primaryKey: unhex(primaryKey), unsafe: true })
    await store.ready()
  },
  async state (name) {
    return state(await open(name))
  },
  async append ({ name, blocks }) {
    const core = await open(name)
    await core.append(blocks.map(unhex))
    return state(core)
  },
  async truncate ({ name, length, fork }) {
    const core = await open(name)
    await core.truncate(length, fork ? { fork } : {})
    return state(core)
  },
  async blocks ({ name, start, end }) {
    const core = await open(name)
    const out = []
    for (let i = start; i < end; i++) out.push(hex(await core.get(i)))
    return out
  },
  async prove ({ name, requests }) {
    const core = await open(name)
    const out = []
    for (const r of requests) out.push(await prove(core, r))
    return out
  },
  // Has a replica that knows nothing but the key verify a data message. The
  // replica keeps what it has learnt for the next one.
  async verify ({ replica, key, manifest, message }) {
    let core = cores.get(replica)
    if (!core) {
      core = new Hypercore(tmpdir(), unhex(key))
      await core.ready()
      cores.set(replica, core)
    }
    const proof = c.decode(wire.data, unhex(message))
    proof.manifest = c.decode(encoding, unhex(manifest))
    const ok = await core.applyProof(proof)
    return { ok, ...(await state(core)) }
  },
  // How many steps above a node such a replica knows the first one.
  async missing ({ replica, index }) {
    const core = cores.get(replica)
    return core ? MerkleTree.missingNodes(core.state, index, core.state.length) : 0
  },
  // Has such a replica replace its history by that of a higher fork: first with a
  // proof of the new head, then with what the answers want.
  async reorg ({ replica, manifest, message }) {
    const core = cores.get(replica)
    const proof = c.decode(wire.data, unhex(message))
    proof.manifest = c.decode(encoding, unhex(manifest))
    let batch = reorgs.get(replica)
    if (batch) await batch.update(proof)
    else reorgs.set(replica, batch = await core.core.verifyReorg(proof))
    if (!batch.finished) return { want: batch.want }
    reorgs.delete(replica)
    const ok = await core.core.reorg(batch)
    return { ok, want: null, ...(await state(core)) }
  },
  // Tree and key of a static core of count blocks, block i being the text i.
  async static (count) {
    const core = await open('static ' + count)
    const blocks = []
    for (let i = 0; i < count; i++) blocks.push(Buffer.from(String(i)))
    for (let i = 0; i < count; i += 10000) await core.append(blocks.slice(i, i + 10000))
    return statics(await core.treeHash(), count)
  },
  // The same of a file with length bytes, byte i being i * 31 >> 8.
  async staticFile (length) {
    const file = Buffer.alloc(length)
    for (let i = 0; i < length; i++) file[i] = (i * 31) >> 8
    const core = await open('static file ' + length)
    const blocks = []
    for (let i = 0; i < length; i += 65536) blocks.push(file.subarray(i, i + 65536))
    await core.append(blocks)
    return statics(await core.treeHash(), blocks.length)
  },

  // Every element of ops is an operation, or a list of them that is one batch.
  async bee ({ name, ops }) {
    const db = await bee(name)
    for (const op of ops) {
      if (op.length === 0 || Array.isArray(op[0])) {
        const batch = db.batch()
        for (const o of op) await apply(batch, o)
        await batch.flush()
      } else await apply(db, op)
    }
    return state(db.core)
  },
  async beeRange ({ name, version, range }) {
    const db = await bee(name)
    const bounds = Object.fromEntries(Object.entries(range).map(([k, v]) => [k, typeof v === 'string' ? unhex(v) : v]))
    return all((version ? db.checkout(version) : db).createReadStream(bounds), entry)
  },
  async beeGet ({ name, version, keys }) {
    const db = await bee(name)
    const at = version ? db.checkout(version) : db
    const out = []
    for (const key of keys) {
      const e = await at.get(unhex(key))
      out.push(e && entry(e))
    }
    return out
  },
  async beeDiff ({ name, version, other, range }) {
    const db = await bee(name)
    const at = version ? db.checkout(version) : db
    const bounds = Object.fromEntries(Object.entries(range).map(([k, v]) => [k, unhex(v)]))
    return all(at.createDiffStream(other, bounds), (d) => [d.left && entry(d.left), d.right && entry(d.right)])
  },
  async beeHistory (name) {
    return all((await bee(name)).createHistoryStream(), (e) => [e.type, ...entry(e)])
  }
})

function statics (hash, length) {
  const manifest = Verifier.createManifest({ version: 1, quorum: 0, signers: [], prologue: { hash, length } })
  const key = Verifier.manifestHash(manifest)
  return { key: hex(key), discoveryKey: hex(crypto.discoveryKey(key)), treeHash: hex(hash), manifest: hex(c.encode(encoding, manifest)) }
}
