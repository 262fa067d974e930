// How answers are shown: a card for each network, a curve over the last moves, a table of many pictures.
import { make, middle } from './dom.js'

export const percent = v => `${Math.round(100 * v)} %`

const BARS = 10                                      // at most so many in a card
const set = (node, attrs) => { for (const [k, v] of Object.entries(attrs)) node.setAttribute(k, v) }

function sample(colour, dash) {                      // a piece of the line that a network has in the curve
  const look = { stroke: colour, 'stroke-width': 3, 'stroke-dasharray': dash }
  const line = make('line', { x1: 1, x2: 27, y1: 5, y2: 5, ...look })
  return make('svg', { viewBox: '0 0 28 10', class: 'kd-chip', 'aria-hidden': 'true' }, line)
}

function columns(colour, n) {                        // bars with names below them, to be set
  const step = 200 / n, svg = make('svg', { viewBox: '0 0 200 84', class: 'kd-columns', role: 'img' })
  svg.append(make('line', { x1: 0, x2: 200, y1: 69.5, y2: 69.5, class: 'kd-axis' }))
  const all = Array.from({ length: n }, (_, j) => {
    const bar = make('rect', { x: (j + .14) * step, width: step * .72, rx: 1, fill: colour })
    const name = make('text', { x: (j + .5) * step, y: 82, 'text-anchor': 'middle' })
    svg.append(bar, name)
    return { bar, name }
  })
  return { svg, all, letters: Math.max(2, Math.floor(step / 9)) }   // a phone's letters are larger
}

// about: { name, kind, colour, dash, heads } of a network; short: labels of the classes
export function card(about, classes, short) {
  const says = make('strong', { class: 'kd-says' }), trust = make('span'), change = make('span', { class: 'kd-change' })
  const { svg, all, letters } = columns(about.colour, Math.min(classes.length, BARS))
  const heads = make('p', { class: 'kd-heads' }), kind = make('p', { class: 'kd-kind' }, about.kind)
  const title = make('h3', {}, sample(about.colour, about.dash), middle(about.name, 18))
  const top = make('div', { class: 'kd-net-top' }, make('div', {}, title, kind), says)
  const numbers = make('p', { class: 'kd-numbers' }, trust, change)
  const long = Math.max(...short.map(s => s.length)) > 3 ? ' kd-long' : ''
  const root = make('li', { class: `kd-net${long}`, 'data-model': about.name }, top, numbers, svg, heads)
  const word = make('span', {}, '?'), brief = make('li', {}, sample(about.colour, about.dash), word)

  return { root, brief,
    cover(target, before) {                          // nothing of the answer is left in the page
      root.classList.add('kd-covered'); root.classList.remove('kd-other')
      says.textContent = word.textContent = '?'; word.className = ''; change.textContent = ''; heads.textContent = about.heads.length ? '\u00a0' : ''
      trust.textContent = `before: ${percent(before)} for ${middle(short[target], 9)}`
      svg.setAttribute('aria-label', `${about.name}: covered until you have guessed`)
      for (const { bar } of all) { set(bar, { y: 3, height: 66.5, class: '' }); delete bar.dataset.p }
    },
    show({ p, said, heads: each }, shown, target, before) {
      const up = Math.round(100 * p[target]) - Math.round(100 * before)
      root.classList.remove('kd-covered'); root.classList.toggle('kd-other', said !== target)
      says.textContent = word.textContent = middle(short[said], 9)
      word.className = said === target ? '' : 'kd-other'
      trust.textContent = `${percent(p[target])} for ${middle(short[target], 9)}`
      change.textContent = up ? ` ${up > 0 ? '▲' : '▼'} ${Math.abs(up)}` : ''
      heads.textContent = about.heads.map(h => `${h} ${middle(short[each[h]], 6)}`).join(' · ')
      const trusts = `${percent(p[target])} for ${classes[target]}`
      svg.setAttribute('aria-label', `${about.name} says ${classes[said]}; ${trusts}`)
      shown.forEach((c, j) => {
        const { bar, name } = all[j], height = Math.max(.8, 66 * p[c])
        set(bar, { y: 69 - height, height, class: c === said ? 'kd-said' : '', 'data-p': p[c].toFixed(6) })
        name.textContent = middle(short[c], letters); name.setAttribute('class', c === target ? 'kd-bold' : '')
      })
    },
  }
}

function kept(heights, lowest, gap = 16) {           // places of names beside their lines, without overlaps
  const order = heights.map((_, k) => k).sort((a, b) => heights[a] - heights[b]), at = []
  let floor = -Infinity
  for (const k of order) at[k] = floor = Math.max(heights[k], floor + gap)
  return at.map(y => y - Math.max(0, floor - lowest))
}

export function curve(nets) {                        // trust in one class, move after move, a line for each network
  const W = 460, H = 168, left = 50, right = 138, top = 8, bottom = 22, end = W - right  // a phone's letters are larger
  const svg = make('svg', { viewBox: `0 0 ${W} ${H}`, class: 'kd-plot kd-moves', role: 'img' })
  const y = v => top + (1 - v) * (H - top - bottom)
  for (const v of [0, .5, 1]) {
    svg.append(make('line', { x1: left, x2: end, y1: y(v), y2: y(v), class: 'kd-axis' }))
    svg.append(make('text', { x: left - 5, y: y(v) + 4, 'text-anchor': 'end' }, percent(v)))
  }
  const parts = nets.map(n => {
    const look = { stroke: n.colour, 'stroke-width': 2.2, 'stroke-linejoin': 'round', 'stroke-dasharray': n.dash }
    const line = make('polyline', { fill: 'none', ...look }), dot = make('circle', { r: 3.2, fill: n.colour })
    const tie = make('line', { stroke: n.colour, x1: end + 5, x2: end + 21 })
    return { line, dot, tie, name: make('text', { x: end + 24 }, middle(n.name, 14)) }
  })
  for (const kind of ['tie', 'line', 'dot', 'name']) svg.append(...parts.map(p => p[kind]))
  const what = make('text', { x: left, y: H - 4, class: 'kd-quiet' })
  svg.append(what)

  return { root: svg, update(moves, target) {        // moves: [{ what, trust: one number a network }]
    const n = moves.length - 1, last = moves.at(-1), x = i => n ? left + i * (end - left) / n : end
    const heights = last.trust.map(y), beside = kept(heights, H - bottom + 4)
    parts.forEach(({ line, dot, tie, name }, k) => {
      line.setAttribute('points', moves.map((m, i) => `${x(i).toFixed(1)},${y(m.trust[k]).toFixed(1)}`).join(' '))
      set(dot, { cx: x(n), cy: heights[k] }); set(name, { y: beside[k] + 4 })
      set(tie, { y1: heights[k], y2: beside[k] })
    })
    what.textContent = n ? `${n} move${n > 1 ? 's' : ''}: ${last.what}` : 'Change the picture: each move adds a point.'
    const said = nets.map((o, k) => `${o.name} ${percent(moves[0].trust[k])} to ${percent(last.trust[k])}`)
    svg.setAttribute('aria-label', `Trust in ${target} after ${n} moves: ${said.join('; ')}`)
  } }
}

export function counted({ measured, presets, of, about }) { // what the changes do on many pictures, and what that shows
  const share = (v, first) => Math.round(45 * Math.max(0, first - v))
  const fell = (v, first) => `background:color-mix(in srgb, #D55E00 ${share(v, first)}%, transparent)`
  const cell = (v, first) => make('td', { style: fell(v, first) }, String(Math.round(100 * v)))
  const row = ([name, values]) =>
    make('tr', {}, make('th', { scope: 'row' }, name), ...values.map(v => cell(v, values[0])))
  const names = ['As it is', ...presets.map(p => p.short)].map(t => make('th', { scope: 'col' }, t))
  const head = make('thead', {}, make('tr', {}, make('td', {}), ...names))
  const body = make('tbody', {}, ...measured.map(row))
  const table = make('table', { class: 'kd-counts' }, make('caption', {}, of), head, body)
  const scroll = { class: 'kd-scroll', tabindex: 0, role: 'region', 'aria-label': 'Accuracy after each change' }
  const quiet = p => p.says.filter(Boolean).map(text => make('span', { class: 'kd-quiet' }, text))
  const say = p => make('li', {}, make('strong', {}, p.title), p.text, ...quiet(p))
  return make('section', { class: 'kd-card' }, make('h2', {}, 'What these changes show'),
    measured.length ? make('div', scroll, table) : null, about ? make('p', { class: 'kd-evidence' }, about) : null,
    make('ul', { class: 'kd-presets' }, ...presets.map(say)))
}
