// Nodes, names and controls that all views share. Every text goes through textContent or an attribute, never through
// innerHTML: names come from users' folders and are data.

const SVG = 'http://www.w3.org/2000/svg'
const DRAWN = new Set(['svg', 'g', 'rect', 'text', 'line', 'path', 'circle', 'polyline', 'title'])

export function make(tag, attrs = {}, ...kids) {
  const node = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) if (v !== null && v !== undefined && v !== false) node.setAttribute(k, v)
  node.append(...kids.filter(kid => kid !== null && kid !== undefined))
  return node
}

export const fixed = (v, digits = 2) => v.toFixed(digits)

export function middle(name, n) {                   // the end of a name says as much as its start
  const s = [...name]
  if (s.length <= n) return name
  const tail = Math.ceil((n - 1) / 2)
  return s.slice(0, n - 1 - tail).join('') + '…' + s.slice(s.length - tail).join('')
}

export function labels(names, n) {                  // short names that still tell every class apart: `class 10` becomes `…10`
  const first = names[0] ?? ''
  let same = 0
  if (names.length > 1) while (same < first.length && names.every(s => s[same] === first[same])) same++
  const cut = names.map(s => same >= 3 && s.length > n), bare = names.map((s, i) => cut[i] ? s.slice(same) : s)
  const short = k => bare.map((s, i) => {           // one … is enough to say that something is left out
    const t = middle(s, k - cut[i])
    return cut[i] && !t.includes('…') ? '…' + t : t
  })
  const different = new Set(names).size
  for (let k = n; k < n + 24; k++) if (new Set(short(k)).size === different) return short(k)
  return short(n)
}

export function choice(label, options, value, onpick) {            // a labelled <select>
  const select = make('select', { 'aria-label': label }, ...options.map(([v, text]) => make('option', { value: v }, text)))
  select.value = value
  select.addEventListener('change', () => onpick(select.value))
  return [make('label', {}, make('span', {}, label), select), select]
}

export function slider(label, { min, max, step, value, say }, onmove) {   // a labelled range that says its value in words
  const input = make('input', { type: 'range', min, max, step, value, 'aria-label': label }), said = make('output')
  const tell = () => { said.textContent = say(+input.value); input.setAttribute('aria-valuetext', say(+input.value)) }
  input.addEventListener('input', () => { tell(); onmove(+input.value) })
  tell()
  return [make('label', {}, make('span', {}, label), input, said), input, tell]
}

export function bytes(model, key) {                  // a Bytes trait is a DataView, possibly at an odd offset
  const v = model.get(key)
  return v.buffer.slice(v.byteOffset, v.byteOffset + v.byteLength)
}

let halves                                           // every half-precision number, decoded once
export function floats(buffer) {                     // half precision -> Float32Array
  halves ??= Float32Array.from({ length: 65536 }, (_, h) => {
    const sign = h >> 15 ? -1 : 1, exponent = (h >> 10) & 31, part = h & 1023
    if (exponent === 31) return part ? NaN : sign * Infinity
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + part / 1024) : 2 ** -24 * part)
  })
  return Float32Array.from(new Uint16Array(buffer), h => halves[h])
}
