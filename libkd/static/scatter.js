// Images as points: near each other where a network's features are alike. Each case has a colour and a shape.
import { bytes, choice, make } from './dom.js'
import { keepKeys } from './keys.js'
import { closeAtlas, openAtlas, tile } from './atlas.js'
import { axes, ticks } from './axes.js'
import { hosted } from './host.js'

const W = 560, H = 400, SHAPES = ['circle', 'square', 'up', 'cross', 'diamond', 'down']
const INK = ['#0072B2', '#009E73', '#E69F00', '#D55E00', '#CC79A7', '#999999']

function shape(kind, x, y, r) {
  const p = { square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`, up: `M${x} ${y - r * 1.2}l${r * 1.1} ${r * 2}h${-2.2 * r}z`, down: `M${x} ${y + r * 1.2}l${r * 1.1} ${-2 * r}h${-2.2 * r}z`,
    diamond: `M${x} ${y - r * 1.3}l${r} ${r * 1.3}l${-r} ${r * 1.3}l${-r} ${-1.3 * r}z`, cross: `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}` }[kind]
  return p ?? `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`
}

function draw(model, host) {
  const meta = model.get('meta'), { n, cases, names } = meta, at = new Float32Array(bytes(model, 'points')), code = new Uint8Array(bytes(model, 'codes')), atlas = openAtlas(model)
  const view = { now: model.get('selected'), kind: model.get('case') }
  const set = (key, value) => { model.set(key, value); model.save_changes() }
  const root = make('section', { class: 'kd', 'aria-label': 'Images as points', 'data-lm-suppress-shortcuts': 'true' })
  keepKeys(root)
  host.replaceChildren(root)
  const [caseBox, pick] = choice('Case', [['', 'all'], ...cases.map(c => [c, c])], view.kind, v => { view.kind = v; set('case', v); paint() })
  const status = make('p', { class: 'kd-status', role: 'status', 'aria-live': 'polite' }), plot = make('div', { class: 'kd-scatter', tabindex: 0, role: 'group',
    'aria-label': 'The points: arrow keys lead to the next point in that direction' }), side = make('div', { class: 'kd-look' })
  const key = make('ul', { class: 'kd-key' }, ...cases.map((c, k) => make('li', {}, make('svg', { viewBox: '0 0 14 14', width: 14, height: 14, 'aria-hidden': 'true' }, mark(k, 7, 7, 4.5)),
    `${c} (${code.reduce((s, v) => s + (v === k), 0)})`)))
  root.append(make('div', { class: 'kd-controls' }, caseBox), status, make('div', { class: 'kd-body' }, make('div', { class: 'kd-left' }, plot, key), side), make('p', { class: 'kd-note' }, meta.note))

  function mark(k, x, y, r) {
    const kind = SHAPES[k % SHAPES.length], ink = INK[k % INK.length]
    return make('path', { d: shape(kind, x, y, r), fill: kind === 'cross' ? 'none' : ink, stroke: ink, 'stroke-width': kind === 'cross' ? 2 : .5 })
  }

  const span = k => { let lo = Infinity, hi = -Infinity; for (let i = k; i < 2 * n; i += 2) { lo = Math.min(lo, at[i]); hi = Math.max(hi, at[i]) } const m = (hi - lo || 1) * .04; return [lo - m, hi + m] }
  const x = span(0), y = span(1), frame = axes({ width: W, height: H, x, y, xlabel: meta.axes[0], ylabel: meta.axes[1], xticks: ticks(...x), yticks: ticks(...y), alt: meta.alt })
  const place = Array.from({ length: n }, (_, i) => frame.at(at[2 * i], at[2 * i + 1]))
  const points = place.map(([px, py], i) => mark(code[i], px, py, 3.5)), ring = make('circle', { r: 8, fill: 'none', class: 'kd-here' })
  frame.svg.append(make('g', {}, ...points), ring)
  plot.append(frame.svg)
  const shown = i => !view.kind || cases[code[i]] === view.kind

  function paint() {
    points.forEach((p, i) => p.setAttribute('opacity', shown(i) ? 1 : .12))
    const i = view.now, [cx, cy] = place[i]
    ring.setAttribute('cx', cx); ring.setAttribute('cy', cy)
    status.textContent = `${code.reduce((s, _, k) => s + shown(k), 0)} of ${n} images. Selected: image ${names[i]}, ${meta.told[i]}.`
    side.replaceChildren(make('div', { class: 'kd-picture' }, tile(atlas, i, 160)), make('p', { class: 'kd-under' }, `${names[i]}: ${meta.told[i]}; ${cases[code[i]]}`))
  }

  const choose = i => { if (i < 0) return; view.now = i; set('selected', i); paint() }
  function nearest(px, py, fits = () => true) {
    let best = -1, d = Infinity
    for (let i = 0; i < n; i++) { const e = (place[i][0] - px) ** 2 + (place[i][1] - py) ** 2; if (shown(i) && e < d && fits(i)) { best = i; d = e } }
    return best
  }
  plot.addEventListener('click', e => { const b = frame.svg.getBoundingClientRect(); choose(nearest((e.clientX - b.left) * W / b.width, (e.clientY - b.top) * H / b.height)) })
  plot.addEventListener('keydown', e => {
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[e.key]
    if (!way) return
    e.preventDefault()
    const [px, py] = place[view.now]             // the nearest point in the quarter of the plane that the arrow points into
    choose(nearest(px, py, i => { const dx = place[i][0] - px, dy = place[i][1] - py, ahead = dx * way[0] + dy * way[1]; return i !== view.now && ahead > 0 && ahead >= Math.abs(dx * way[1] + dy * way[0]) }))
  })
  paint()
  return { close: () => closeAtlas(atlas), outside: {
    selected: () => { view.now = model.get('selected'); paint() }, case: () => { view.kind = pick.value = model.get('case'); paint() } } }
}

export default hosted({ draw })
