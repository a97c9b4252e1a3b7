// Folds package logs that it is given.
import { serve, unhex } from './lib/rpc.mjs'
import { fold, plain } from './lib/pkglog.mjs'

serve({
  async fold (blocks) {
    return plain(fold(blocks.map(unhex)))
  }
})
