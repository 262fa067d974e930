// The attention viewer: one picture, its tokens as rows, the heads of one layer as columns, each teacher's own saliency beside them.
// Every map is in multiples of uniform attention (a map that looks everywhere equally is 1 everywhere), so all share one scale.
import { bytes, choice, fixed, floats, make, slider } from './dom.js'
import { arrows, keepKeys, roving } from './keys.js'
import { closeAtlas, openAtlas, tile } from './atlas.js'
import { axes, heat, scale, ticks } from './axes.js'
import { asker } from './ask.js'
import { hosted } from './host.js'

const BIG = 256                                     // side of the picture on which a map is laid, CSS pixels

// ---- the data of one viewer -------------------------------------------------------------------------------------------

function load(model) {
  const meta = model.get('meta'), P = meta.grid[0] * meta.grid[1], H = meta.heads, columns = H + 2
  const whole = key => new Uint8Array(bytes(model, key)), peak = key => floats(bytes(model, key))
  const maps = whole('maps'), peaks = peak('peaks'), glow = whole('glow'), glowPeaks = peak('glow_peaks'), tells = whole('tells')
  const near = whole('rows'), nearPeaks = peak('row_peaks'), T = meta.tokens.length
  const stored = (all, tops, at) => Float32Array.from(all.subarray(at * P, (at + 1) * P), v => v / 31 * tops[at])
  const place = (i, l, t, c) => ((i * meta.layers + l) * T + t) * columns + c
  return { ...meta, P, H, T, columns,
    map: (i, l, t, c) => stored(maps, peaks, place(i, l, t, c)),
    glow: (i, s) => stored(glow, glowPeaks, i * meta.saliency.length + s),
    tell: (kind, i, l, t, c) => { const v = tells[kind * tells.length / 2 + place(i, l, t, c)]; return v === undefined || v === 255 ? null : v },
    // head maps of a patch, from the page itself: all heads, or their mean alone where heads would weigh too much
    patch: (i, l, q) => i >= meta.shipped ? null : Array.from({ length: meta.row_heads }, (_, h) => stored(near, nearPeaks, ((i * meta.layers + l) * meta.row_heads + h) * P + q)) }
}

const mean = maps => maps[0].map((_, j) => maps.reduce((s, m) => s + m[j], 0) / maps.length)
const best = m => m.reduce((b, v, j) => v > m[b] ? j : b, 0)

// Rows of cells for what is chosen now. A cell: { label, map, kind, tell } with `map` null where there is nothing to show.
function table(data, view, asked) {
  const i = view.picture, l = view.layer, blank = { label: '', map: null }, rows = []
  const guide = t => data.saliency.indexOf(data.guides[data.tokens[t]])
  const guided = data.tokens.some((_, t) => guide(t) >= 0)
  const names = [...(guided ? ['teacher'] : []), ...Array.from({ length: data.H }, (_, h) => `head ${h + 1}`), 'mean', 'rollout']
  const cell = (t, c) => ({ label: c < data.H ? `head ${c + 1}` : c === data.H ? 'mean of the heads' : 'rollout', map: data.map(i, l, t, c), token: t, column: c })
  if (data.layers) data.tokens.forEach((name, t) => {
    const beside = guided ? [guide(t) < 0 ? blank : { label: `saliency of ${data.saliency[guide(t)]}`, map: data.glow(i, guide(t)) }] : []
    rows.push({ name, cells: [...beside, ...Array.from({ length: data.columns }, (_, c) => cell(t, c))] })
  })
  if (view.minus) {
    const [a, b] = view.minus.split(' − ').map(n => data.tokens.indexOf(n)), less = (x, y) => x.map((v, j) => v - y[j])
    const both = guided ? [guide(a) < 0 || guide(b) < 0 ? blank : { label: 'difference of the teachers', kind: 'signed', map: less(data.glow(i, guide(a)), data.glow(i, guide(b))) }] : []
    rows.push({ name: view.minus, cells: [...both, ...Array.from({ length: data.columns }, (_, c) => ({ label: cell(a, c).label, kind: 'signed', map: less(data.map(i, l, a, c), data.map(i, l, b, c)) }))] })
  }
  if (data.layers) {
    const heads = asked ?? [], q = view.query
    const of = c => ({ label: names[c + guided], map: c < data.H ? heads.length > 1 || data.H === 1 ? heads[c] ?? null : null : c === data.H && heads.length ? mean(heads) : null })
    rows.push({ name: q < 0 ? 'a patch' : `patch ${Math.floor(q / data.grid[1]) + 1}, ${q % data.grid[1] + 1}`, patch: true,
      cells: [...(guided ? [blank] : []), ...Array.from({ length: data.columns }, (_, c) => of(c))] })
  }
  const alone = data.saliency.filter(s => !Object.values(data.guides).includes(s))
  if (alone.length) rows.push({ name: data.layers ? 'teachers' : 'saliency', named: true,
    cells: alone.map(s => ({ label: s, map: data.glow(i, data.saliency.indexOf(s)) })) })
  return [data.layers ? names : [], rows]
}

function limits(rows) {                             // one scale for all maps, one for all differences: 98 in 100 places lie inside
  const of = signed => rows.flatMap(r => r.cells).filter(c => c.map && (c.kind === 'signed') === signed).flatMap(c => [...c.map].map(Math.abs)).sort((a, b) => a - b)
  const end = all => all.length ? all[Math.floor(.98 * (all.length - 1))] : 0
  return { up: Math.max(2, end(of(false))), signed: Math.max(.5, end(of(true))) }
}

// ---- the view ---------------------------------------------------------------------------------------------------------

function draw(model, host) {
  const data = load(model), atlas = openAtlas(model), python = asker(model), [gh, gw] = data.grid
  const view = { picture: model.get('selected'), layer: model.get('layer'), token: model.get('token'), column: model.get('column'),
                 query: model.get('query'), minus: model.get('minus') }
  let asked = null                                   // head maps of the patch that asks
  const set = (key, value) => { model.set(key, value); model.save_changes() }
  const root = make('section', { class: 'kd', 'aria-label': 'Where the tokens look', 'data-lm-suppress-shortcuts': 'true' })
  keepKeys(root)
  host.replaceChildren(root)

  // controls
  const strip = make('div', { class: 'kd-strip', role: 'listbox', 'aria-label': 'Pictures', 'aria-orientation': 'horizontal' })
  data.labels.forEach((label, i) => {
    const name = `picture ${label}${data.answers[i] ? ', ' + data.answers[i] : ''}`
    const option = make('button', { type: 'button', role: 'option', class: 'kd-thumb', 'data-index': i, title: name, 'aria-label': name }, tile(atlas, i, 40))
    option.addEventListener('click', () => choose(i))
    strip.append(option)
  })
  roving(strip, () => [...strip.children], () => 1, b => choose(+b.dataset.index))
  const [layerBox, layer, tellLayer] = slider('Layer', { min: 1, max: Math.max(1, data.layers), step: 1, value: view.layer + 1, say: v => `${v} of ${data.layers}` },
    v => { view.layer = v - 1; set('layer', v - 1); query(view.query) })
  const [veilBox, veil] = slider('Overlay', { min: 0, max: 100, step: 10, value: 70, say: v => `${v} %` }, v => { cover.style.opacity = v / 100 })
  const pairs = data.tokens.flatMap((a, i) => data.tokens.slice(i + 1).map(b => `${b} − ${a}`)).reverse()
  const [minusBox, minus] = choice('Difference', [['', 'none'], ...pairs.map(p => [p, p])], view.minus, v => { view.minus = v; set('minus', v); paint() })
  const controls = make('div', { class: 'kd-controls' }, data.layers > 1 ? layerBox : null, veilBox, pairs.length && data.layers ? minusBox : null)

  // the large picture, on which a patch can be pointed at
  const cover = make('canvas', { class: 'kd-cover', 'aria-hidden': 'true', style: 'opacity:.7' }), ring = make('span', { class: 'kd-ring', 'aria-hidden': 'true' })
  const stage = make('div', { class: 'kd-stage', tabindex: data.layers ? 0 : null, role: 'group',
    'aria-label': data.layers ? 'The picture: arrow keys choose the patch that asks, Escape none' : 'The picture' })
  const caption = make('p', { class: 'kd-under' }), status = make('p', { class: 'kd-status', role: 'status', 'aria-live': 'polite' })
  const hint = data.layers ? make('p', { class: 'kd-note' }, 'Point at a patch: the row ‘a patch’ then shows where it looks.') : ''
  const grid = make('div', { class: 'kd-scroll' }), scales = make('div', { class: 'kd-scales' }), far = make('div')
  root.append(strip, controls, status,
    make('div', { class: 'kd-body' }, make('div', { class: 'kd-look' }, stage, caption, hint), make('div', { class: 'kd-block' }, grid, scales),
      data.layers ? make('div', { class: 'kd-far' }, make('h2', {}, 'How far each head looks'), far) : ''),
    make('ul', { class: 'kd-note' }, ...data.notes.map(n => make('li', {}, n))))

  const patchAt = e => {
    const box = stage.getBoundingClientRect(), at = (v, n) => Math.max(0, Math.min(n - 1, Math.floor(v * n)))
    return at((e.clientY - box.top) / box.height, gh) * gw + at((e.clientX - box.left) / box.width, gw)
  }
  let pinned = view.query
  if (data.layers) {
    stage.addEventListener('pointermove', e => { if (e.pointerType === 'mouse') query(patchAt(e)) })
    stage.addEventListener('pointerleave', () => query(pinned))
    stage.addEventListener('click', e => { const q = patchAt(e); pinned = pinned === q ? -1 : q; query(pinned) })
    stage.addEventListener('keydown', e => {
      const q = view.query < 0 ? Math.floor(gh / 2) * gw + Math.floor(gw / 2) : view.query
      const next = e.key === 'Escape' ? -1 : view.query < 0 && e.key.startsWith('Arrow') ? (e.preventDefault(), q) : arrows(e, gh * gw, q, gw)
      if (next >= 0 || e.key === 'Escape') { pinned = next; query(next) }
    })
  }

  function query(q) {                                // this patch asks; its rows come from the page or from Python
    const before = asked, same = q === view.query
    view.query = q
    if (model.get('query') !== q) set('query', q)
    asked = q < 0 || !data.layers ? null : data.patch(view.picture, view.layer, q)
    if (q >= 0 && asked === null && data.layers && python.live) {
      if (same) asked = before
      python.ask('rows', { picture: view.picture, layer: view.layer, patch: q }, (answer, buffers) => {
        const values = floats(buffers[0].buffer.slice(buffers[0].byteOffset, buffers[0].byteOffset + buffers[0].byteLength))
        asked = Array.from({ length: data.H }, (_, h) => values.subarray(h * data.P, (h + 1) * data.P))
        paint()
      })
    }
    paint()
  }

  function choose(i) {
    view.picture = i
    set('selected', i)
    query(view.query)
  }

  function where(m) { const b = best(m); return `row ${Math.floor(b / gw) + 1}, column ${b % gw + 1}` }
  const percent = v => `${v} %`

  function said(row, cell) {                         // a cell in words
    if (!cell.map) return row.patch ? `${row.name}: ${view.query < 0 ? 'point at a patch' : 'not in this page'}` : `${row.name}: nothing`
    if (cell.kind === 'signed') return `${row.name}, ${cell.label}: most at ${where(cell.map)}`
    return `${row.name}, ${cell.label}: most at ${where(cell.map)}, ${fixed(Math.max(...cell.map), 1)} times uniform`
  }

  function tellingOf(cell) {                         // does this map tell anything?
    if (cell.token === undefined || cell.kind) return ''
    const [others, noise] = [0, 1].map(kind => data.tell(kind, view.picture, view.layer, cell.token, cell.column))
    if (others === null) return ''
    const what = data.targets[cell.token]
    return ` It fits ${what} better than ${percent(others)} of this head’s maps on ${data.others} other pictures` +
      (noise === null ? '' : `, and better than ${percent(noise)} of the maps of ${data.shuffles} networks with shuffled weights`) + '; chance is 50 %.'
  }

  let rows = [], lim = { up: 2, signed: 1 }

  function button(row, cell, r, c) {
    const words = said(row, cell), [others, noise] = [0, 1].map(kind => cell.token === undefined || cell.kind ? null : data.tell(kind, view.picture, view.layer, cell.token, cell.column))
    const small = make('canvas', { 'aria-hidden': 'true' }), kind = cell.kind ?? 'up'
    if (cell.map) heat(small, cell.map, gh, gw, kind === 'up' ? 0 : -lim.signed, lim[kind], kind)
    const on = view.token === r && view.column === c
    const b = make('button', { type: 'button', class: 'kd-map' + (cell.map ? '' : ' kd-empty'), 'aria-pressed': String(on), tabindex: on ? 0 : -1, title: words, disabled: cell.map ? null : '',
      'aria-label': words + tellingOf(cell), 'data-row': r, 'data-column': c }, small)
    if (row.named) b.append(make('span', { class: 'kd-caption' }, cell.label))
    else b.append(make('span', { class: 'kd-caption' + (others >= 95 && (noise === null || noise >= 95) ? ' kd-bold' : '') }, others === null ? '\u200b' : percent(others)))
    b.addEventListener('click', () => focus(r, c))
    return b
  }

  function focus(r, c, take = true) {
    view.token = r; view.column = c
    set('token', r); set('column', c)
    for (const b of grid.querySelectorAll('button')) { const on = +b.dataset.row === r && +b.dataset.column === c; b.setAttribute('aria-pressed', String(on)); b.tabIndex = on ? 0 : -1 }
    if (take) grid.querySelector('[aria-pressed=true]')?.focus()
    large()
  }

  function paint() {
    const [names, now] = table(data, view, asked)
    rows = now; lim = limits(rows)
    const had = grid.contains(document.activeElement ?? null) || grid.contains(grid.getRootNode().activeElement)
    if (!rows[view.token]?.cells[view.column]?.map) [view.token, view.column] = first()
    const head = names.length ? [make('thead', {}, make('tr', {}, make('td'), ...names.map(n => make('th', { scope: 'col' }, n))))] : []
    grid.replaceChildren(make('table', { class: 'kd-table kd-maps' }, ...head, make('tbody', {}, ...rows.map((row, r) =>
      make('tr', { class: row.patch ? 'kd-patchrow' : null }, make('th', { scope: 'row' }, row.name), ...row.cells.map((cell, c) => make('td', {}, button(row, cell, r, c))))))))
    if (had) grid.querySelector('[aria-pressed=true]')?.focus()
    const signed = rows.some(r => r.cells.some(c => c.kind === 'signed'))
    scales.replaceChildren(scale('times uniform', 0, lim.up, 'up', v => v ? `${fixed(v, 1)}+` : '0'), signed ? scale('difference', -lim.signed, lim.signed, 'signed') : '')
    for (const b of strip.children) { const on = +b.dataset.index === view.picture; b.setAttribute('aria-selected', String(on)); b.tabIndex = on ? 0 : -1 }
    large(); distances()
  }

  function first() {
    for (let r = 0; r < rows.length; r++) { const c = rows[r].cells.findIndex(cell => cell.map); if (c >= 0) return [r, c] }
    return [0, 0]
  }

  function large() {
    const row = rows[view.token], cell = row?.cells[view.column]
    if (stage.dataset.picture !== String(view.picture)) { stage.replaceChildren(tile(atlas, view.picture, BIG), cover, ring); stage.dataset.picture = view.picture }
    if (cell?.map) heat(cover, cell.map, gh, gw, cell.kind ? -lim.signed : 0, lim[cell.kind ?? 'up'], cell.kind ?? 'up')
    ring.hidden = view.query < 0 || !data.layers
    const q = Math.max(0, view.query)
    ring.setAttribute('style', `left:${100 * (q % gw) / gw}%;top:${100 * Math.floor(q / gw) / gh}%;width:${100 / gw}%;height:${100 / gh}%`)
    const answer = data.answers[view.picture]
    caption.textContent = `Picture ${data.labels[view.picture]}${answer ? ': ' + answer : ''}`
    const silent = view.query >= 0 && data.layers && asked === null ? ' What this patch looks at is not in this page: open it where Python runs.' : ''
    status.textContent = (data.layers ? `Layer ${view.layer + 1} of ${data.layers}. ` : '') + (cell ? `${said(row, cell)}.${tellingOf(cell)}` : '') + silent
  }

  function distances() {                             // dots: heads; line: their mean; dashes: uniform attention
    if (!data.layers) return
    const D = data.distances, top = Math.max(data.uniform, ...D.flat()) * 1.25, means = D.map(d => d.reduce((a, b) => a + b) / d.length), l = view.layer
    const alt = `Mean attention distance in patches, layer by layer: ${means.map(v => fixed(v, 1)).join(', ')}; uniform attention ${fixed(data.uniform, 1)}`
    const { svg, at } = axes({ width: 300, height: 190, x: [.5, D.length + .5], y: [0, top], xlabel: 'layer', ylabel: 'patches', xticks: D.map((_, k) => k + 1), yticks: ticks(0, top, 4), alt })
    const [x0, y] = at(.5, data.uniform), [x1] = at(D.length + .5, 0)
    svg.append(make('line', { x1: x0, x2: x1, y1: y, y2: y, class: 'kd-uniform' }), make('text', { x: x1, y: y - 9, 'text-anchor': 'end' }, `uniform ${fixed(data.uniform, 1)}`),
      make('polyline', { points: means.map((v, k) => at(k + 1, v).join(',')).join(' '), class: 'kd-line' }))
    D.forEach((heads, k) => heads.forEach((v, h) => { const [cx, cy] = at(k + 1, v); svg.append(make('circle', { cx, cy, r: k === l ? 5 : 3.5, class: k === l ? 'kd-dot kd-now' : 'kd-dot' }, make('title', {}, `layer ${k + 1}, head ${h + 1}: ${fixed(v, 2)} patches`))) }))
    far.replaceChildren(svg)
  }

  roving(grid, () => [...grid.querySelectorAll('button:not(:disabled)')], nodes => nodes.filter(b => b.dataset.row === nodes[0].dataset.row).length, b => focus(+b.dataset.row, +b.dataset.column, false))
  query(view.query)
  return { close: () => { python.close(); closeAtlas(atlas) }, outside: {
    layer: () => { if (model.get('layer') !== view.layer) { view.layer = model.get('layer'); layer.value = view.layer + 1; tellLayer(); query(view.query) } },
    selected: () => { if (model.get('selected') !== view.picture) { view.picture = model.get('selected'); query(view.query) } },
    query: () => { if (model.get('query') !== view.query) { pinned = model.get('query'); query(pinned) } },
    minus: () => { if (model.get('minus') !== view.minus) { view.minus = minus.value = model.get('minus'); paint() } } } }
}

export default hosted({ draw })
