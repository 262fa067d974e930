// Maps in colours and small plots. Colours: cividis from 0 up, purple to orange around 0; both can be read without red or green.
import { make } from './dom.js'

const CIVIDIS = ['00224e', '013271', '2f426d', '48526c', '5e636f', '727374', '878478', '9d9576', 'b6a96f', 'cebc63', 'e7d150', 'fee838']
const SIGNED = ['532687', '8073ac', 'b1aad1', 'd8daeb', 'f6f6f7', 'fee0b6', 'fcb761', 'e08214', 'b25706']
const rgb = hex => [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16))

function ramp(stops) {                               // 256 colours between the stops
  const known = stops.map(rgb)
  return Array.from({ length: 256 }, (_, i) => {
    const at = i / 255 * (known.length - 1), k = Math.min(Math.floor(at), known.length - 2), f = at - k
    return known[k].map((v, c) => Math.round(v + f * (known[k + 1][c] - v)))
  })
}
const RAMPS = { up: ramp(CIVIDIS), signed: ramp(SIGNED) }

export function colour(v, lo, hi, kind = 'up') {     // [r, g, b] of a value between lo and hi
  return RAMPS[kind][Math.max(0, Math.min(255, Math.round(255 * (v - lo) / (hi - lo || 1))))]
}

export function heat(canvas, values, rows, columns, lo, hi, kind = 'up') {   // one pixel a patch; CSS makes it larger
  canvas.width = columns; canvas.height = rows
  const image = new ImageData(columns, rows)
  for (let i = 0; i < values.length; i++) image.data.set([...colour(values[i], lo, hi, kind), 255], 4 * i)
  canvas.getContext('2d').putImageData(image, 0, 0)
}

export function scale(label, lo, hi, kind = 'up', say = v => v.toFixed(1)) {  // a colour bar with its ends in numbers
  const stops = (kind === 'up' ? CIVIDIS : SIGNED).map(s => '#' + s).join(',')
  return make('div', { class: 'kd-scale' }, make('span', {}, label), make('span', {}, say(lo)),
    make('span', { class: 'kd-ramp', style: `background:linear-gradient(90deg,${stops})`, 'aria-hidden': 'true' }), make('span', {}, say(hi)))
}

// Axes with ticks; `at(x, y)` gives the place of a point, in the units of the picture
export function axes({ width, height, x, y, xlabel, ylabel, xticks, yticks, alt }) {
  const box = { left: 50, right: 10, top: 8, bottom: 34 }, w = width - box.left - box.right, h = height - box.top - box.bottom
  const at = (a, b) => [box.left + w * (a - x[0]) / (x[1] - x[0] || 1), box.top + h * (1 - (b - y[0]) / (y[1] - y[0] || 1))]
  const svg = make('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'kd-plot', 'aria-label': alt })
  svg.append(make('line', { x1: box.left, x2: width - box.right, y1: box.top + h, y2: box.top + h, class: 'kd-axis' }),
             make('line', { x1: box.left, x2: box.left, y1: box.top, y2: box.top + h, class: 'kd-axis' }),
             make('text', { x: box.left + w / 2, y: height - 4, 'text-anchor': 'middle' }, xlabel),
             make('text', { x: 11, y: box.top + h / 2, 'text-anchor': 'middle', transform: `rotate(-90 11 ${box.top + h / 2})` }, ylabel))
  for (const t of xticks) svg.append(make('text', { x: at(t, y[0])[0], y: box.top + h + 14, 'text-anchor': 'middle' }, String(t)))
  for (const t of yticks) svg.append(make('text', { x: box.left - 5, y: at(x[0], t)[1] + 4, 'text-anchor': 'end' }, String(t)))
  return { svg, at }
}

export function ticks(lo, hi, n = 5) {               // round numbers from lo to hi
  const raw = (hi - lo) / n || 1, unit = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].find(s => s * unit >= raw) * unit
  const out = []
  for (let t = Math.ceil(lo / step) * step; t <= hi + 1e-9; t += step) out.push(+t.toPrecision(6))
  return out
}
