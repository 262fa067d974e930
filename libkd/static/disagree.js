// The disagreement explorer: one ES module for Jupyter (through anywidget) and for the offline page. No imports, no network.
// Every text goes through textContent or an attribute, never through innerHTML: names are data.

const SVG = 'http://www.w3.org/2000/svg'
const PAGE = 60                                    // thumbnails shown at once
const TOP = 10                                     // classes with bars, the most probable of the image

function make(tag, attrs = {}, ...kids) {
  const svg = ['svg', 'rect', 'text', 'line', 'g'].includes(tag)
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) if (v !== null && v !== undefined && v !== false) node.setAttribute(k, v)
  node.append(...kids.filter(k => k !== null && k !== undefined))
  return node
}

const short = (s, n = 16) => s.length <= n ? s : s.slice(0, n - 1) + '…'
const fixed = (v, d = 2) => v.toFixed(d)

function buffer(model, key) {                      // a Bytes trait is a DataView, possibly at an odd offset
  const v = model.get(key)
  return v.buffer.slice(v.byteOffset, v.byteOffset + v.byteLength)
}

// ---- the same arithmetic as libkd.diagnose ----------------------------------------------------------------------------

function softmax(Z, at, C, T) {                    // logits Z[at .. at+C] -> probabilities
  const p = new Float64Array(C)
  let top = -Infinity, sum = 0
  for (let c = 0; c < C; c++) top = Math.max(top, Z[at + c])
  for (let c = 0; c < C; c++) sum += p[c] = Math.exp((Z[at + c] - top) / T)
  for (let c = 0; c < C; c++) p[c] /= sum
  return p
}

const entropy = p => p.reduce((h, v) => v > 0 ? h - v * Math.log(v) : h, 0)

function jensenShannon(ps) {
  const mean = ps[0].map((_, c) => ps.reduce((s, p) => s + p[c], 0) / ps.length)
  return Math.max(0, entropy(mean) - ps.reduce((s, p) => s + entropy(p), 0) / ps.length)
}

function kl(p, q) {
  let s = 0
  for (let c = 0; c < p.length; c++) if (p[c] > 0) s += p[c] * Math.log(p[c] / Math.max(q[c], 1e-300))
  return Math.max(0, s)
}

const argmax = (Z, at, C) => { let b = 0; for (let c = 1; c < C; c++) if (Z[at + c] > Z[at + b]) b = c; return b }

// ---- the data of one explorer -----------------------------------------------------------------------------------------

function load(model) {
  const meta = model.get('meta'), { names, classes, n } = meta, C = classes.length
  const Z = new Float32Array(buffer(model, 'logits')), y = new Int32Array(buffer(model, 'y')), code = new Uint8Array(buffer(model, 'codes'))
  const at = (k, i) => (k * n + i) * C, index = name => names.indexOf(name)
  const says = names.map((_, k) => Int32Array.from({ length: n }, (_, i) => argmax(Z, at(k, i), C)))
  const data = { ...meta, C, Z, y, code, says, index, p: (k, i, T) => softmax(Z, at(k, i), C, T) }
  data.teacher = meta.teachers.map(index)
  data.told = (who, i) => who === 'truth' ? y[i] : says[index(who)][i]
  return data
}

function scores(data, T) {                         // what one can sort by, for every image, at temperature T
  const out = { js: new Float64Array(data.n) }
  for (const t of data.teachers) out['kl:' + t] = new Float64Array(data.n)
  const s = data.student === null ? -1 : data.index(data.student)
  for (let i = 0; i < data.n; i++) {
    const ps = data.teacher.map(k => data.p(k, i, T))
    out.js[i] = jensenShannon(ps)
    if (s >= 0) { const q = data.p(s, i, T); data.teachers.forEach((t, j) => { out['kl:' + t][i] = kl(ps[j], q) }) }
  }
  return out
}

// ---- parts of the page ------------------------------------------------------------------------------------------------

function choice(label, options, value, onpick) {   // a labelled <select>
  const select = make('select', { 'aria-label': label }, ...options.map(([v, t]) => make('option', { value: v }, t)))
  select.value = value
  select.addEventListener('change', () => onpick(select.value))
  return [make('label', {}, make('span', {}, label), select), select]
}

function bars(data, i, T) {                        // one row of bars a model; the classes are shared
  const P = data.names.map((_, k) => data.p(k, i, T))
  const most = data.classes.map((_, c) => Math.max(...P.map(p => p[c])))
  const shown = [...most.keys()].sort((a, b) => most[b] - most[a]).slice(0, TOP).sort((a, b) => a - b)
  const W = 520, left = 132, right = 96, row = 44, w = (W - left - right) / shown.length, H = row * P.length + 22
  const said = data.names.map((name, k) => `${name} says ${data.classes[data.says[k][i]]} (${fixed(P[k][data.says[k][i]])})`)
  const svg = make('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', class: 'kd-bars', 'aria-label': `Answers at temperature ${T}: ${said.join('; ')}` })
  P.forEach((p, k) => {
    const base = row * (k + 1) - 4
    svg.append(make('text', { x: left - 8, y: base - 10, 'text-anchor': 'end' }, short(data.names[k], 19)),
               make('line', { x1: left, x2: W - right, y1: base, y2: base, class: 'kd-axis' }))
    shown.forEach((c, j) => {
      const h = Math.max(.6, p[c] * (row - 8))
      svg.append(make('rect', { x: left + j * w + 1, y: base - h, width: Math.max(w - 2, 1), height: h, fill: data.colours[k],
        'data-model': data.names[k], 'data-class': c, 'data-p': p[c].toFixed(6), class: c === data.says[k][i] ? 'kd-said' : null }))
    })
    svg.append(make('text', { x: W - right + 8, y: base - 10, class: 'kd-bold' }, `${short(data.classes[data.says[k][i]], 7)}  ${fixed(P[k][data.says[k][i]])}`))
  })
  shown.forEach((c, j) => svg.append(make('text', { x: left + (j + .5) * w, y: H - 6, 'text-anchor': 'middle', class: c === data.y[i] ? 'kd-bold' : null },
    (c === data.y[i] ? '▸' : '') + short(data.classes[c], Math.max(2, Math.floor(w / 7))))))
  return svg
}

function tile(data, url, i, side) {                // one thumbnail, cut out of the sheet that holds all of them
  const scale = side / data.tile, x = (i % data.cols) * side, y = Math.floor(i / data.cols) * side
  const style = `width:${side}px;height:${side}px;background-image:url(${url});background-position:-${x}px -${y}px;` +
    `background-size:${data.cols * data.tile * scale}px auto;image-rendering:${scale > 1.5 ? 'pixelated' : 'auto'}`
  return make('span', { class: 'kd-tile', style, 'aria-hidden': 'true' })
}

const told = (data, i) => (data.y[i] >= 0 ? `truth ${data.classes[data.y[i]]}, ` : '') +
  data.teachers.map(t => `${t} says ${data.classes[data.says[data.index(t)][i]]}`).join(', ')

function arrows(event, nodes, current, columns) {  // roving focus: which of `nodes` an arrow key leads to, or -1
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -current, End: nodes.length - 1 - current }[event.key]
  if (step === undefined) return -1
  event.preventDefault()
  return Math.min(Math.max(current + step, 0), nodes.length - 1)
}

// ---- the widget -------------------------------------------------------------------------------------------------------

function render({ model, el: host }) {
  const data = load(model), mime = data.mime
  const url = URL.createObjectURL(new Blob([buffer(model, 'atlas')], { type: mime }))
  const view = { sort: model.get('sort'), kind: model.get('case'), cls: model.get('cls'), T: model.get('T'), cell: null,
                 rows: data.teachers[0], columns: data.teachers[1] ?? (data.labelled ? 'truth' : data.teachers[0]), shown: PAGE, order: [] }
  const hide = make('style', {}, `.kd-snap-${data.id}{display:none}`)          // the picture stands in only while we are not there
  document.head.append(hide)

  const root = make('section', { class: 'kd', 'aria-label': 'Disagreement of the teachers', 'data-lm-suppress-shortcuts': 'true' })
  root.addEventListener('keydown', e => { if (e.key !== 'Escape') e.stopPropagation() })  // or the notebook would insert and delete cells
  host.append(root)

  const set = (key, value) => { model.set(key, value); model.save_changes() }
  const slider = make('input', { type: 'range', min: .5, max: 10, step: .5, value: view.T, 'aria-label': 'Temperature T' }), shownT = make('output')
  slider.addEventListener('input', () => { set('T', +slider.value); view.T = +slider.value; refresh() })
  const has = data.student !== null
  const pick = (key, name, v) => { view[name] = v; set(key, v); view.shown = PAGE; refresh() }
  const [sortBox, sort] = choice('Sort by', [['js', 'distance of the teachers (JS)'], ...(has ? data.teachers.map(t => ['kl:' + t, `KL(${t} ‖ ${data.student})`]) : []),
    ['data', 'order of the data']], view.sort, v => pick('sort', 'sort', v))
  const [caseBox, kind] = choice('Case', [['', 'all'], ...data.cases.map(c => [c, c])], view.kind, v => pick('case', 'kind', v))
  const [classBox, cls] = choice('True class', [['', 'all'], ...data.classes.map(c => [c, c])], view.cls, v => pick('cls', 'cls', v))
  const clear = make('button', { type: 'button' }, 'Clear filters')
  clear.addEventListener('click', () => { view.cell = null; view.kind = view.cls = ''; kind.value = cls.value = ''; set('case', ''); set('cls', ''); refresh() })
  const controls = make('div', { class: 'kd-controls' }, make('label', {}, make('span', {}, 'Temperature T'), slider, shownT), sortBox, caseBox, data.labelled ? classBox : null, clear)

  const status = make('p', { class: 'kd-status', role: 'status', 'aria-live': 'polite' })
  const list = make('div', { class: 'kd-list', role: 'listbox', 'aria-label': 'Images', tabindex: '-1' })
  const more = make('button', { type: 'button', class: 'kd-more' }, 'Show more')
  more.addEventListener('click', () => { view.shown += PAGE; thumbnails() })
  const detail = make('div', { class: 'kd-detail' })
  const who = ['truth', ...data.names].filter(w => w !== 'truth' || data.labelled).map(w => [w, w])
  const [rowBox] = choice('Rows', who, view.rows, v => { view.rows = v; view.cell = null; refresh() })
  const [columnBox] = choice('Columns', who, view.columns, v => { view.columns = v; view.cell = null; refresh() })
  const grid = make('div', { class: 'kd-scroll' }), heads = make('div', { class: 'kd-scroll' })
  const note = make('p', { class: 'kd-note' }, data.note)
  root.append(controls, status, make('div', { class: 'kd-body' }, make('div', { class: 'kd-left' }, list, more), make('div', { class: 'kd-right' }, detail)),
    make('div', { class: 'kd-body' }, make('div', {}, make('h2', {}, 'Who says what'), make('div', { class: 'kd-controls' }, rowBox, columnBox), grid),
      data.heads.length ? make('div', {}, make('h2', {}, 'Which head agrees with which teacher'), heads) : null), note)

  let value = scores(data, view.T), valueT = view.T

  function filtered(withCell = true) {
    const keep = []
    for (let i = 0; i < data.n; i++) {
      if (view.kind && data.cases[data.code[i]] !== view.kind) continue
      if (view.cls && data.classes[data.y[i]] !== view.cls) continue
      if (withCell && view.cell && (data.told(view.rows, i) !== view.cell[0] || data.told(view.columns, i) !== view.cell[1])) continue
      keep.push(i)
    }
    return keep
  }

  function refresh() {
    if (valueT !== view.T) { value = scores(data, view.T); valueT = view.T }
    const v = value[view.sort]
    view.order = filtered()
    if (v) view.order.sort((a, b) => v[b] - v[a] || a - b)
    if (!view.order.includes(model.get('selected')) && view.order.length) set('selected', view.order[0])
    shownT.textContent = fixed(view.T, 1)
    thumbnails(); selected(); confusion(); agreement()
  }

  function thumbnails() {
    const now = model.get('selected'), part = view.order.slice(0, view.shown)
    const stop = part.includes(now) ? now : part[0]
    list.replaceChildren(...part.map(i => {
      const label = `image ${data.labels[i]}, ${told(data, i)}`
      const option = make('button', { type: 'button', role: 'option', class: 'kd-thumb', title: label, 'aria-label': label, 'data-index': i,
        'aria-selected': String(i === now), tabindex: i === stop ? 0 : -1 }, tile(data, url, i, 48))
      option.append(make('span', { class: 'kd-caption', 'aria-hidden': 'true', 'data-says': data.teachers.map(t => short(data.classes[data.says[data.index(t)][i]], 4)).join('|') }))
      option.addEventListener('click', () => choose(i))
      return option
    }))
    more.hidden = view.order.length <= view.shown
    more.textContent = `Show more (${view.order.length - Math.min(view.shown, view.order.length)} left)`
  }

  list.addEventListener('keydown', e => {
    const nodes = [...list.children], now = nodes.indexOf(document.activeElement ?? list.getRootNode().activeElement)
    if (now < 0) return
    const columns = nodes.filter(b => b.offsetTop === nodes[0].offsetTop).length, next = arrows(e, nodes, now, columns)
    if (next >= 0) { nodes[next].focus(); choose(+nodes[next].dataset.index) }
  })

  function choose(i) {
    set('selected', i)
    for (const b of list.children) { const on = +b.dataset.index === i; b.setAttribute('aria-selected', String(on)); b.tabIndex = on ? 0 : -1 }
    selected()
  }

  function selected() {
    const i = model.get('selected'), m = view.order.length
    const what = view.cell ? `; only where ${view.rows} says ${data.classes[view.cell[0]]} and ${view.columns} ${data.classes[view.cell[1]]}` : ''
    status.textContent = `${m} of ${data.n} images${what}. ` + (m ? `Selected: image ${data.labels[i]}, ${told(data, i)}.` : 'No image fits these filters.')
    if (!m) return detail.replaceChildren()
    const facts = [data.y[i] >= 0 ? `Truth: ${data.classes[data.y[i]]}` : null, data.cases[data.code[i]], `JS ${fixed(value.js[i], 3)}`,
      ...(has ? data.teachers.map(t => `KL(${t} ‖ ${data.student}) ${fixed(value['kl:' + t][i], 3)}`) : [])].filter(Boolean)
    detail.replaceChildren(make('div', { class: 'kd-picture' }, tile(data, url, i, 96), make('ul', {}, ...facts.map(f => make('li', {}, f)))), bars(data, i, view.T))
  }

  function confusion() {
    const keep = filtered(false), M = Array.from({ length: data.C }, () => new Uint32Array(data.C))
    for (const i of keep) { const r = data.told(view.rows, i), c = data.told(view.columns, i); if (r >= 0 && c >= 0) M[r][c]++ }
    let off = 0, top = 1, best = 0
    const pairs = []
    M.forEach((row, r) => row.forEach((v, c) => { if (r !== c) { off += v; top = Math.max(top, v); if (v) pairs.push([r, c, v]) } }))
    pairs.sort((a, b) => b[2] - a[2])
    const label = `${view.rows} (rows) and ${view.columns} (columns) differ on ${off} of ${keep.length} images`
    const button = (r, c, v, text, tab) => {
      const on = view.cell !== null && view.cell[0] === r && view.cell[1] === c
      const b = make('button', { type: 'button', 'aria-pressed': String(on), tabindex: tab, 'data-cell': `${r},${c}`,
        'aria-label': `${view.rows} says ${data.classes[r]}, ${view.columns} ${data.classes[c]}: ${v}`,
        style: r === c ? null : `background:color-mix(in srgb, #E69F00 ${Math.round(45 * v / top)}%, transparent)` }, text)
      b.addEventListener('click', () => { view.cell = on ? null : [r, c]; view.shown = PAGE; refresh(); refocus(`${r},${c}`) })
      return b
    }
    if (data.C > 20) {                             // too many classes for a table: the most frequent pairs
      grid.replaceChildren(make('p', {}, label), make('ol', { class: 'kd-pairs' }, ...pairs.slice(0, 20).map(([r, c, v]) =>
        make('li', {}, button(r, c, v, `${data.classes[r]} | ${data.classes[c]}: ${v}`, 0)))))
      return
    }
    const first = view.cell ?? (pairs[0] || [0, 0])
    const head = make('tr', {}, make('td'), ...data.classes.map(c => make('th', { scope: 'col', title: c }, short(c, 5))))
    const body = M.map((row, r) => make('tr', {}, make('th', { scope: 'row', title: data.classes[r] }, short(data.classes[r], 9)),
      ...Array.from(row, (v, c) => make('td', { class: r === c ? 'kd-same' : null }, button(r, c, v, v ? String(v) : '·', r === first[0] && c === first[1] ? 0 : -1)))))
    grid.replaceChildren(make('table', { class: 'kd-table' }, make('caption', {}, label), make('thead', {}, head), make('tbody', {}, ...body)))
  }

  const refocus = cell => grid.querySelector(`[data-cell="${cell}"]`)?.focus()
  grid.addEventListener('keydown', e => {
    const nodes = [...grid.querySelectorAll('button')], now = nodes.indexOf(e.target)
    if (now < 0) return
    const next = arrows(e, nodes, now, data.C > 20 ? 1 : data.C)
    if (next >= 0) { nodes.forEach(b => { b.tabIndex = -1 }); nodes[next].tabIndex = 0; nodes[next].focus() }
  })

  function agreement() {
    if (!data.heads.length) return
    const keep = view.order, share = (a, b) => keep.filter(i => data.says[data.index(a)][i] === data.says[data.index(b)][i]).length / Math.max(keep.length, 1)
    heads.replaceChildren(make('table', { class: 'kd-table' }, make('caption', {}, `Equal decisions on the ${keep.length} images above`),
      make('thead', {}, make('tr', {}, make('td'), ...data.teachers.map(t => make('th', { scope: 'col' }, t)))),
      make('tbody', {}, ...data.heads.map(h => make('tr', {}, make('th', { scope: 'row' }, h), ...data.teachers.map(t => make('td', {}, fixed(share(h, t), 3))))))))
  }

  const outside = { 'change:T': () => { if (model.get('T') !== view.T) { view.T = model.get('T'); slider.value = view.T; refresh() } },
    'change:selected': () => { for (const b of list.children) b.setAttribute('aria-selected', String(+b.dataset.index === model.get('selected'))); selected() },
    'change:sort': () => { view.sort = sort.value = model.get('sort'); refresh() },
    'change:case': () => { view.kind = kind.value = model.get('case'); refresh() },
    'change:cls': () => { view.cls = cls.value = model.get('cls'); refresh() } }
  for (const [name, f] of Object.entries(outside)) model.on(name, f)
  refresh()
  return () => { for (const [name, f] of Object.entries(outside)) model.off(name, f); hide.remove(); URL.revokeObjectURL(url) }
}

export default { render }
