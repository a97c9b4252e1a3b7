// A Corestore of a given primary key, whose named cores do what they are told.
import Corestore from 'corestore'
import Hypercore from 'hypercore'
import { serve, tmpdir, hex, unhex } from './lib/rpc.mjs'

let store = null
const cores = new Map()

async function named (name) {
  let core = cores.get(name)
  if (!core) {
    core = store.get({ name })
    await core.ready()
    cores.set(name, core)
  }
  return core
}

async function state (core) {
  return {
    key: hex(core.key),
    discoveryKey: hex(core.discoveryKey),
    length: core.length,
    byteLength: core.byteLength,
    fork: core.fork,
    treeHash: hex(await core.treeHash()),
    signature: hex(core.core.header.tree.signature)
  }
}

serve({
  async open (primaryKey) {
    store = new Corestore(tmpdir(), { primaryKey: unhex(primaryKey), unsafe: true })
    await store.ready()
  },
  async append ({ name, blocks }) {
    const core = await named(name)
    await core.append(blocks.map(unhex))
    return state(core)
  },
  async truncate ({ name, length }) {
    const core = await named(name)
    await core.truncate(length)
    return state(core)
  },
  async get ({ name, index }) {
    return hex(await (await named(name)).get(index))
  },
  // staticKey is the key of the static core of count blocks, block i being i.
  async staticKey (count) {
    const core = store.get({ name: 'static ' + count })
    await core.ready()
    await core.append(Array.from({ length: count }, (_, i) => Buffer.from(String(i))))
    const prologue = { hash: await core.treeHash(), length: core.length }
    const key = Hypercore.key({ version: 1, quorum: 0, signers: [], prologue })
    await core.close()
    return hex(key)
  }
})
