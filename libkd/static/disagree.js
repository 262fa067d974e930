// The disagreement explorer: images sorted by how far the teachers' answers are apart, at any temperature.
import { bytes, choice, fixed, floats, labels, make, slider } from './dom.js'
import { keepKeys, roving } from './keys.js'
import { closeAtlas, openAtlas, tile } from './atlas.js'
import { hosted } from './host.js'
import { bars, jensenShannon, kl, softmax } from './bars.js'

const PAGE = 60                                    // thumbnails shown at once
const TABLE = 20                                   // up to so many classes the confusions are a table, beyond it a list

// ---- the data of one explorer -----------------------------------------------------------------------------------------

function load(model) {
  const meta = model.get('meta'), { names, classes, n } = meta, C = classes.length
  const Z = floats(bytes(model, 'logits')), y = new Int32Array(bytes(model, 'y')), code = new Uint8Array(bytes(model, 'codes'))
  const decided = new Uint16Array(bytes(model, 'says')), says = names.map((_, k) => decided.subarray(k * n, (k + 1) * n))
  const index = name => names.indexOf(name)
  const data = { ...meta, C, Z, y, code, says, index, p: (k, i, T, by = k) => softmax(Z, (k * n + i) * C, C, T, (by * n + i) * C) }
  data.tiny = labels(classes, 5); data.short = labels(classes, 9)
  data.teacher = meta.teachers.map(index)
  data.pupil = meta.student === null ? -1 : index(meta.student)
  data.told = (who, i) => who === 'truth' ? y[i] : says[index(who)][i]
  return data
}

// JS(teachers), or KL(teacher ‖ student) among the classes that the teacher knows, of every image at once. The two loops over
// classes are all the explorer computes when the temperature moves, so they are written out: no arrays are made, and only the
// score that is asked for is computed.
function score(data, kind, T) {
  const { C, n, Z } = data, out = new Float64Array(n)
  const models = kind === 'js' ? data.teacher : [data.index(kind.slice(3)), data.pupil]
  const P = models.map(() => new Float64Array(C)), logs = new Float64Array(models.length)       // p, and the log of its sum
  for (let i = 0; i < n; i++) {
    let own = 0
    models.forEach((k, m) => {
      const at = (k * n + i) * C, by = kind === 'js' ? at : (models[0] * n + i) * C, p = P[m]
      let top = -Infinity, sum = 0, dot = 0
      for (let c = 0; c < C; c++) if (Z[by + c] > -Infinity && Z[at + c] > top) top = Z[at + c]
      for (let c = 0; c < C; c++) {
        const z = (Z[at + c] - top) / T, e = Z[by + c] > -Infinity && Z[at + c] > -Infinity ? Math.exp(z) : 0
        p[c] = e; sum += e
        if (e > 0) dot += e * z
      }
      for (let c = 0; c < C; c++) p[c] /= sum
      logs[m] = Math.log(sum) + top / T
      own += Math.log(sum) - dot / sum                                                            // the entropy of p
    })
    let s = 0
    if (kind === 'js') {
      for (let c = 0; c < C; c++) { let mean = 0; for (const p of P) mean += p[c]; mean /= P.length; if (mean > 0) s -= mean * Math.log(mean) }
      s -= own / P.length
    } else {
      const a = (models[0] * n + i) * C, b = (models[1] * n + i) * C, shift = logs[1] - logs[0]
      for (let c = 0; c < C; c++) if (P[0][c] > 0) s += Z[b + c] > -Infinity ? P[0][c] * ((Z[a + c] - Z[b + c]) / T + shift) : Infinity
    }
    out[i] = Math.max(0, s)
  }
  return out
}

const told = (data, i) => (data.y[i] >= 0 ? `truth ${data.classes[data.y[i]]}, ` : '') +
  data.teachers.map(t => `${t} says ${data.classes[data.says[data.index(t)][i]]}`).join(', ')

// ---- the view ---------------------------------------------------------------------------------------------------------

function draw(model, host) {
  const data = load(model), atlas = openAtlas(model)
  const view = { sort: model.get('sort'), kind: model.get('case'), cls: model.get('cls'), T: model.get('T'), cell: null,
                 rows: data.teachers[0], columns: data.teachers[1] ?? (data.labelled ? 'truth' : data.teachers[0]), shown: PAGE, order: [] }
  const root = make('section', { class: 'kd', 'aria-label': 'Disagreement of the teachers', 'data-lm-suppress-shortcuts': 'true' })
  keepKeys(root)
  host.replaceChildren(root)

  const set = (key, value) => { model.set(key, value); model.save_changes() }
  const [sliderBox, warm, tellT] = slider('Temperature T', { min: .5, max: 10, step: .5, value: view.T, say: v => fixed(v, 1) }, T => {
    set('T', T); view.T = T; resort() })
  const has = data.student !== null
  const pick = (key, name, v) => { view[name] = v; set(key, v); view.shown = PAGE; refresh() }
  const [sortBox, sort] = choice('Sort by', [['js', 'distance of the teachers (JS)'], ...(has ? data.teachers.map(t => ['kl:' + t, `KL(${t} ‖ ${data.student})`]) : []),
    ['data', 'order of the data']], view.sort, v => pick('sort', 'sort', v))
  const [caseBox, kind] = choice('Case', [['', 'all'], ...data.cases.map(c => [c, c])], view.kind, v => pick('case', 'kind', v))
  const [classBox, cls] = choice('True class', [['', 'all'], ...data.classes.map(c => [c, c])], view.cls, v => pick('cls', 'cls', v))
  const clear = make('button', { type: 'button' }, 'Clear filters')
  clear.addEventListener('click', () => { view.cell = null; view.kind = view.cls = ''; kind.value = cls.value = ''; set('case', ''); set('cls', ''); refresh() })
  const controls = make('div', { class: 'kd-controls' }, sliderBox, sortBox, caseBox, data.labelled ? classBox : null, clear)

  const status = make('p', { class: 'kd-status', role: 'status', 'aria-live': 'polite' })
  const list = make('div', { class: 'kd-list', role: 'listbox', 'aria-label': 'Images', tabindex: '-1' })
  const more = make('button', { type: 'button', class: 'kd-more' }, 'Show more')
  more.addEventListener('click', () => { view.shown += PAGE; thumbnails() })
  const detail = make('div', { class: 'kd-detail' })
  const who = ['truth', ...data.names].filter(w => w !== 'truth' || data.labelled).map(w => [w, w])
  const [rowBox] = choice('Rows', who, view.rows, v => { view.rows = v; view.cell = null; refresh() })
  const [columnBox] = choice('Columns', who, view.columns, v => { view.columns = v; view.cell = null; refresh() })
  const grid = make('div', { class: 'kd-scroll' }), heads = make('div', { class: 'kd-scroll' })
  root.append(controls, status, make('div', { class: 'kd-body' }, make('div', { class: 'kd-left' }, list, more), make('div', { class: 'kd-right' }, detail)),
    make('div', { class: 'kd-body' }, make('div', { class: 'kd-left' }, make('h2', {}, 'Who says what'), make('div', { class: 'kd-controls' }, rowBox, columnBox), grid),
      data.heads.length ? make('div', { class: 'kd-right' }, make('h2', {}, 'Which head agrees with which teacher'), heads) : null),
    make('p', { class: 'kd-note' }, data.note))

  let values = {}, valuesT = null                  // kind -> scores, computed when first asked for at this temperature
  const scored = kind => {
    if (valuesT !== view.T) { values = {}; valuesT = view.T }
    return values[kind] ??= score(data, kind, view.T)
  }

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

  function refresh() { resort(); confusion(); agreement() }        // decisions do not depend on T: only `resort` follows the slider

  function resort() {
    view.order = filtered()
    if (view.sort !== 'data') { const v = scored(view.sort); view.order.sort((a, b) => v[b] - v[a] || a - b) }
    if (!view.order.includes(model.get('selected')) && view.order.length) set('selected', view.order[0])
    thumbnails(); selected()
  }

  function thumbnails() {
    const now = model.get('selected'), part = view.order.slice(0, view.shown)
    const stop = part.includes(now) ? now : part[0]
    list.replaceChildren(...part.map(i => {
      const label = `image ${data.labels[i]}, ${told(data, i)}`
      const option = make('button', { type: 'button', role: 'option', class: 'kd-thumb', title: label, 'aria-label': label, 'data-index': i,
        'aria-selected': String(i === now), tabindex: i === stop ? 0 : -1 }, tile(atlas, i, 48))
      option.append(make('span', { class: 'kd-caption', 'aria-hidden': 'true', 'data-says': data.teacher.map(k => data.tiny[data.says[k][i]]).join('|') }))
      option.addEventListener('click', () => choose(i))
      return option
    }))
    more.hidden = view.order.length <= view.shown
    more.textContent = `Show more (${view.order.length - Math.min(view.shown, view.order.length)} left)`
  }

  roving(list, () => [...list.children], nodes => nodes.filter(b => b.offsetTop === nodes[0].offsetTop).length, b => choose(+b.dataset.index))

  function choose(i) {
    set('selected', i)
    mark(i); selected()
  }

  function mark(i) { for (const b of list.children) { const on = +b.dataset.index === i; b.setAttribute('aria-selected', String(on)); b.tabIndex = on ? 0 : -1 } }

  function selected() {
    const i = model.get('selected'), m = view.order.length
    const what = view.cell ? `; only where ${view.rows} says ${data.classes[view.cell[0]]} and ${view.columns} ${data.classes[view.cell[1]]}` : ''
    status.textContent = `${m} of ${data.n} images${what}. ` + (m ? `Selected: image ${data.labels[i]}, ${told(data, i)}.` : 'No image fits these filters.')
    if (!m) return detail.replaceChildren()
    const P = data.names.map((_, k) => data.p(k, i, view.T)), pupil = by => data.p(data.pupil, i, view.T, by)
    const facts = [data.y[i] >= 0 ? `Truth: ${data.classes[data.y[i]]}` : null, data.cases[data.code[i]], `JS ${fixed(jensenShannon(data.teacher.map(k => P[k])), 3)}`,
      ...(has ? data.teachers.map((t, j) => `KL(${t} ‖ ${data.student}) ${fixed(kl(P[data.teacher[j]], pupil(data.teacher[j])), 3)}`) : [])].filter(Boolean)
    const rows = data.names.map((name, k) => ({ name, colour: data.colours[k], p: P[k], says: data.says[k][i] }))
    detail.replaceChildren(make('div', { class: 'kd-picture' }, tile(atlas, i, 96), make('ul', {}, ...facts.map(f => make('li', {}, f)))),
      bars(rows, { classes: data.classes, short: data.short, truth: data.y[i], what: `Answers at temperature ${view.T}` }))
  }

  function counts(keep) {                          // `row,column` -> images, and how many are off the diagonal
    const found = new Map()
    let off = 0
    for (const i of keep) {
      const r = data.told(view.rows, i), c = data.told(view.columns, i)
      if (r < 0 || c < 0) continue
      found.set(`${r},${c}`, (found.get(`${r},${c}`) ?? 0) + 1)
      off += r !== c
    }
    return [found, off]
  }

  function confusion() {
    const keep = filtered(false), [found, off] = counts(keep)
    const pairs = [...found].map(([cell, v]) => [...cell.split(',').map(Number), v]).filter(([r, c]) => r !== c).sort((a, b) => b[2] - a[2])
    const top = pairs[0]?.[2] ?? 1, label = `${view.rows} (rows) and ${view.columns} (columns) differ on ${off} of ${keep.length} images`
    const button = (r, c, v, text, tab) => {
      const on = view.cell !== null && view.cell[0] === r && view.cell[1] === c
      const b = make('button', { type: 'button', 'aria-pressed': String(on), tabindex: tab, 'data-cell': `${r},${c}`,
        'aria-label': `${view.rows} says ${data.classes[r]}, ${view.columns} ${data.classes[c]}: ${v}`,
        style: r === c ? null : `background:color-mix(in srgb, #E69F00 ${Math.round(45 * v / top)}%, transparent)` }, text)
      b.addEventListener('click', () => { view.cell = on ? null : [r, c]; view.shown = PAGE; refresh(); refocus(`${r},${c}`) })
      return b
    }
    if (data.C > TABLE) {
      grid.replaceChildren(make('p', {}, label), make('ol', { class: 'kd-pairs' }, ...pairs.slice(0, 20).map(([r, c, v], j) =>
        make('li', {}, button(r, c, v, `${data.classes[r]} | ${data.classes[c]}: ${v}`, j ? -1 : 0)))))
      return
    }
    const first = view.cell ?? (pairs[0] || [0, 0]), all = [...data.classes.keys()]
    const head = make('tr', {}, make('td'), ...all.map(c => make('th', { scope: 'col', title: data.classes[c] }, data.tiny[c])))
    const body = all.map(r => make('tr', {}, make('th', { scope: 'row', title: data.classes[r] }, data.short[r]), ...all.map(c => {
      const v = found.get(`${r},${c}`) ?? 0
      return make('td', { class: r === c ? 'kd-same' : null }, button(r, c, v, v ? String(v) : '·', r === first[0] && c === first[1] ? 0 : -1))
    })))
    grid.replaceChildren(make('table', { class: 'kd-table' }, make('caption', {}, label), make('thead', {}, head), make('tbody', {}, ...body)))
  }

  const refocus = cell => grid.querySelector(`[data-cell="${cell}"]`)?.focus()
  roving(grid, () => [...grid.querySelectorAll('button')], () => data.C > TABLE ? 1 : data.C)

  function agreement() {
    if (!data.heads.length) return
    const keep = view.order, share = (a, b) => keep.filter(i => data.says[data.index(a)][i] === data.says[data.index(b)][i]).length / Math.max(keep.length, 1)
    heads.replaceChildren(make('table', { class: 'kd-table kd-loose' }, make('caption', {}, `Equal decisions on the ${keep.length} images above`),
      make('thead', {}, make('tr', {}, make('td'), ...data.teachers.map(t => make('th', { scope: 'col' }, t)))),
      make('tbody', {}, ...data.heads.map(h => make('tr', {}, make('th', { scope: 'row' }, h), ...data.teachers.map(t => make('td', {}, fixed(share(h, t), 3))))))))
  }

  refresh()
  return { close: () => closeAtlas(atlas), outside: {
    T: () => { if (model.get('T') !== view.T) { view.T = warm.value = model.get('T'); tellT(); resort() } },
    selected: () => { mark(model.get('selected')); selected() },
    sort: () => { view.sort = sort.value = model.get('sort'); refresh() },
    case: () => { view.kind = kind.value = model.get('case'); refresh() },
    cls: () => { view.cls = cls.value = model.get('cls'); refresh() } } }
}

export default hosted({ draw })
