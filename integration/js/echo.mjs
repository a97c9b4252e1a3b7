// Answers with what it is given: shows that a script runs and is answered.
import { serve } from './lib/rpc.mjs'

serve({
  echo: (params) => params,
  fail (message) {
    throw new Error(message)
  }
})
