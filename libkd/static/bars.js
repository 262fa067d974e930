// Softened answers as bars, and the distances between them: the same arithmetic as libkd.diagnose.
import { fixed, labels, make, middle } from './dom.js'

const TOP = 10                                       // classes with bars, the most probable of the image

// logits Z[at .. at+C] -> probabilities, among the classes that Z[by .. by+C] knows: -Infinity says that it does not
export function softmax(Z, at, C, T, by = at) {
  const p = new Float64Array(C)
  let top = -Infinity, sum = 0
  for (let c = 0; c < C; c++) if (Z[by + c] > -Infinity && Z[at + c] > top) top = Z[at + c]
  for (let c = 0; c < C; c++) if (Z[by + c] > -Infinity && Z[at + c] > -Infinity) sum += p[c] = Math.exp((Z[at + c] - top) / T)
  for (let c = 0; c < C; c++) p[c] /= sum || 1
  return p
}

export function entropy(p) {
  let h = 0
  for (let c = 0; c < p.length; c++) if (p[c] > 0) h -= p[c] * Math.log(p[c])
  return h
}

export function jensenShannon(ps) {
  const mean = new Float64Array(ps[0].length)
  let own = 0
  for (const p of ps) { own += entropy(p); for (let c = 0; c < p.length; c++) mean[c] += p[c] / ps.length }
  return Math.max(0, entropy(mean) - own / ps.length)
}

export function kl(p, q) {
  let s = 0
  for (let c = 0; c < p.length; c++) if (p[c] > 0) s += p[c] * Math.log(p[c] / Math.max(q[c], 1e-300))
  return Math.max(0, s)
}

// rows: [{ name, colour, p, says }] of one image; classes: whole names, short: their labels; truth: -1 where it is not known
export function bars(rows, { classes, short, truth = -1, what = 'Answers' }) {
  const most = classes.map((_, c) => Math.max(...rows.map(r => r.p[c])))
  const shown = [...most.keys()].sort((a, b) => most[b] - most[a]).slice(0, TOP).sort((a, b) => a - b)
  const W = 544, left = 132, right = 128, row = 44, w = (W - left - right) / shown.length
  const names = shown.map(c => classes[c]), fit = k => Math.max(3, Math.floor(k * w / 7.5)), one = labels(names, fit(1))
  const lines = one.every(s => s.length <= fit(1)) ? 1 : 2, under = lines === 1 ? one : labels(names, fit(2))
  const H = row * rows.length + 8 + 14 * lines
  const said = rows.map(r => `${r.name} says ${classes[r.says]} (${fixed(r.p[r.says])})`)
  const svg = make('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', class: 'kd-bars', 'aria-label': `${what}: ${said.join('; ')}` })
  rows.forEach((r, k) => {
    const base = row * (k + 1) - 4
    svg.append(make('text', { x: left - 8, y: base - 10, 'text-anchor': 'end' }, middle(r.name, 19)),
               make('line', { x1: left, x2: W - right, y1: base, y2: base, class: 'kd-axis' }))
    shown.forEach((c, j) => {
      const h = Math.max(.6, r.p[c] * (row - 8))
      svg.append(make('rect', { x: left + j * w + 1, y: base - h, width: Math.max(w - 2, 1), height: h, fill: r.colour,
        'data-model': r.name, 'data-class': c, 'data-p': r.p[c].toFixed(6), class: c === r.says ? 'kd-said' : null }))
    })
    svg.append(make('text', { x: W - right + 8, y: base - 10, class: 'kd-bold' }, `${middle(short[r.says], 8)}  ${fixed(r.p[r.says])}`))
  })
  shown.forEach((c, j) => {                         // long names take turns on two lines
    const y = row * rows.length + 16 + 14 * (j % lines), name = middle(under[j], fit(lines) - (c === truth))
    const text = make('text', { x: left + (j + .5) * w, y, 'text-anchor': 'middle', class: c === truth ? 'kd-bold' : null })
    text.append((c === truth ? '▸' : '') + name, make('title', {}, classes[c]))
    svg.append(text)
  })
  return svg
}
