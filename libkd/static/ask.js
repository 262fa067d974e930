// Questions to Python. Each has a number; an answer to any but the latest question of its kind is dropped.

export function asker(model) {
  if (!model.send) return { live: false, ask: () => {}, close: () => {} }       // the offline page has nobody to ask
  const latest = {}, waiting = new Map()
  let number = 0
  const heard = (message, buffers) => {
    const then = waiting.get(message?.number)
    if (!then) return
    waiting.delete(message.number)
    if (latest[message.kind] === message.number) then(message, buffers)
  }
  model.on('msg:custom', heard)
  return { live: true, close: () => model.off('msg:custom', heard),
    ask(kind, body, then) {
      latest[kind] = ++number
      waiting.set(number, then)
      model.send({ kind, number, ...body })
    } }
}
