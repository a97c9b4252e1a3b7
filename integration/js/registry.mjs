// A client of a registry that knows nothing but its key and the address of one
// peer: lists packages, reads package logs, downloads and hashes artifacts. It
// uses the reference implementation as it is.
//
//   node registry.mjs REGISTRY-KEY HOST:PORT
import net from 'node:net'
import crypto from 'node:crypto'
import c from 'compact-encoding'
import Corestore from 'corestore'
import Hyperbee from 'hyperbee'
import SecretStream from '@hyperswarm/secret-stream'
import idEncoding from 'hypercore-id-encoding'
import { serve, tmpdir, unhex } from './lib/rpc.mjs'
import { fold, plain } from './lib/pkglog.mjs'

const [registryKey, address] = process.argv.slice(2)
const at = address.lastIndexOf(':')
const store = new Corestore(tmpdir())
await store.ready()
const stream = new SecretStream(true, net.connect(Number(address.slice(at + 1)), address.slice(0, at)))
stream.on('error', (err) => { if (!process.exitCode) console.error(err) })
store.replicate(stream)

async function replica (key) {
  const core = store.get({ key })
  await core.ready()
  const done = core.findingPeers()
  await stream.opened
  await core.update({ wait: true })
  done()
  return core
}

const catalog = await replica(idEncoding.decode(registryKey))
await catalog.get(0)
const bee = new Hyperbee(catalog, { keyEncoding: 'utf-8', valueEncoding: 'binary' })
await bee.ready()

function entry (value) {
  const s = { start: 0, end: value.length, buffer: value }
  if (c.uint.decode(s) !== 1) throw new Error('entry of an unknown version')
  return { log: c.fixed32.decode(s), length: c.uint.decode(s), treeHash: c.fixed32.decode(s), time: c.uint.decode(s) }
}

async function readLog (name) {
  const node = await bee.get(name)
  if (!node) throw new Error(name + ' is not in the catalog')
  const e = entry(node.value)
  const core = await replica(e.log)
  const blocks = []
  for (let i = 0; i < e.length; i++) blocks.push(await core.get(i))
  const treeHash = await core.treeHash(e.length)
  if (!treeHash.equals(e.treeHash)) throw new Error('log of ' + name + ' is not what the catalog names')
  return fold(blocks)
}

serve({
  async list () {
    const names = []
    for await (const { key } of bee.createReadStream()) if (!key.startsWith('!')) names.push(key)
    return names
  },
  async log (name) {
    return plain(await readLog(name))
  },
  async artifact (key) {
    const core = await replica(unhex(key))
    const hash = crypto.createHash('sha256')
    let byteLength = 0
    for (let i = 0; i < core.length; i++) {
      const b = await core.get(i)
      hash.update(b)
      byteLength += b.length
    }
    return { sha256: hash.digest('hex'), byteLength }
  }
})
