
// The end of an offline page: a stand-in for Jupyter's model, and the view drawn on it.
const raw = JSON.parse(document.getElementById('data').textContent), values = { ...raw.values }, heard = {}
const inflated = async text => {
  const squeezed = new Blob([Uint8Array.from(atob(text), c => c.charCodeAt(0))]).stream()
  return new DataView(await new Response(squeezed.pipeThrough(new DecompressionStream('deflate'))).arrayBuffer())
}
await Promise.all(Object.entries(raw.bytes).map(async ([k, v]) => { values[k] = await inflated(v) }))
const model = { get: k => values[k], set: (k, v) => { if (values[k] !== v) { values[k] = v; (heard['change:' + k] || []).forEach(f => f()) } },
  save_changes: () => {}, on: (e, f) => (heard[e] ||= []).push(f), off: (e, f) => { heard[e] = (heard[e] || []).filter(g => g !== f) } }
const close = widget.render({ model, el: document.getElementById('view') })
window.libkd = { model, heard, close: () => { close(); document.getElementById('view').replaceChildren() } }
