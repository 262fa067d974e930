// The playground: the reader changes a picture, and all networks answer at once, in the page.
import { jensenShannon, softmax } from './bars.js'
import { bytes, fixed, labels, make, middle, slider } from './dom.js'
import { NEUTRAL, dabbed, edited } from './edits.js'
import { hosted } from './host.js'
import { keepKeys, roving } from './keys.js'
import { network } from './nets.js'

const MOVES = 24, SHOWN = 10                         // moves in the curve; classes with a bar
const PAINTS = { white: [1, 1, 1], black: [0, 0, 0], red: [.85, .15, .1], yellow: [1, .85, .1], green: [.1, .65, .3], blue: [.1, .35, .85] }
const percent = v => `${Math.round(100 * v)} %`

// What a preset does: its steps, one edit each, from the picture as it is
const STEPS = {
  shift: (W, seed) => Array.from({ length: Math.min(6, W >> 2) }, (_, i) => ({ dx: i + 1 })),
  shuffle: (W, seed) => [{ shuffle: 4, seed }],
  silhouette: () => [{ silhouette: true }],
  grey: () => [{ colour: 0 }],
  noise: (W, seed) => [{ noise: .2, seed }],
  cover: () => [{ cover: .4 }],
}

// ---- the picture and what is done to it ----

function paint(canvas, p, H, W) {
  const image = new ImageData(W, H)
  for (let i = 0; i < H * W; i++) {
    for (let k = 0; k < 3; k++) image.data[4 * i + k] = Math.round(255 * p[3 * i + k])
    image.data[4 * i + 3] = 255
  }
  canvas.width = W; canvas.height = H
  canvas.getContext('2d').putImageData(image, 0, 0)
  return canvas
}

async function loaded(file, H, W) {                  // the middle of a file's picture, at the size of the networks
  const whole = await createImageBitmap(file), scale = Math.max(W / whole.width, H / whole.height)
  const canvas = make('canvas', { width: W, height: H }), pen = canvas.getContext('2d'), w = whole.width * scale, h = whole.height * scale
  pen.imageSmoothingQuality = 'high'
  pen.drawImage(whole, (W - w) / 2, (H - h) / 2, w, h)
  const { data } = pen.getImageData(0, 0, W, H), p = new Float32Array(H * W * 3)
  for (let i = 0; i < H * W; i++) for (let k = 0; k < 3; k++) p[3 * i + k] = data[4 * i + k] / 255
  return p
}

function toggles(label, options, value, onpick) {    // one of a few buttons is pressed
  const group = make('div', { role: 'group', 'aria-label': label, class: 'kd-toggles' })
  const press = now => { for (const b of group.children) b.setAttribute('aria-pressed', b.dataset.value === now) }
  for (const [v, text, extra] of options) {
    const b = make('button', { type: 'button', 'data-value': v, ...extra }, text)
    b.addEventListener('click', () => { press(v); onpick(v) })
    group.append(b)
  }
  press(value)
  return [group, press]
}

function button(text, onclick, attrs = {}) {
  const b = make('button', { type: 'button', ...attrs }, text)
  b.addEventListener('click', onclick)
  return b
}

// ---- one network's answer ----

function card(about, classes, short) {
  const says = make('strong', { class: 'kd-says' }), trust = make('span', { class: 'kd-trust' }), change = make('span', { class: 'kd-change' })
  const line = make('line', { x1: 1, x2: 27, y1: 5, y2: 5, stroke: about.colour, 'stroke-width': 3, 'stroke-dasharray': about.dash })
  const chip = make('svg', { viewBox: '0 0 28 10', class: 'kd-chip', 'aria-hidden': 'true' }, line)
  const bars = make('svg', { viewBox: '0 0 200 62', class: 'kd-columns', role: 'img' }), heads = make('p', { class: 'kd-heads' })
  const n = Math.min(classes.length, SHOWN), step = 200 / n
  const columns = Array.from({ length: n }, (_, j) => {
    const bar = make('rect', { x: j * step + step * .14, width: step * .72, rx: 1, fill: about.colour })
    const name = make('text', { x: (j + .5) * step, y: 60, 'text-anchor': 'middle' })
    bars.append(bar, name)
    return { bar, name }
  })
  bars.prepend(make('line', { x1: 0, x2: 200, y1: 47.5, y2: 47.5, class: 'kd-axis' }))
  const root = make('li', { class: 'kd-net', 'data-model': about.name },
    make('div', { class: 'kd-net-top' }, make('div', {}, make('h3', {}, chip, middle(about.name, 18)), make('p', { class: 'kd-kind' }, about.kind)), says),
    make('p', { class: 'kd-numbers' }, trust, change), bars, heads)

  function cover(target, before) {
    says.textContent = '?'; trust.textContent = `before: ${percent(before)} for ${middle(short[target], 9)}`; change.textContent = ''; heads.textContent = about.heads.length ? '\u00a0' : ''
    bars.setAttribute('aria-label', `${about.name}: covered until you have guessed`)
    for (const { bar } of columns) { bar.setAttribute('y', 3); bar.setAttribute('height', 44.5) }
    root.classList.add('kd-covered')
  }

  function show({ p, said, heads: each }, shown, target, before) {
    const up = Math.round(100 * p[target]) - Math.round(100 * before)
    root.classList.remove('kd-covered')
    root.classList.toggle('kd-other', said !== target)
    says.textContent = middle(short[said], 9)
    trust.textContent = `${percent(p[target])} for ${middle(short[target], 9)}`
    change.textContent = up ? ` ${up > 0 ? '▲' : '▼'} ${Math.abs(up)}` : ''
    heads.textContent = about.heads.map(h => `${h} ${middle(short[each[h]], 6)}`).join(' · ')
    bars.setAttribute('aria-label', `${about.name} says ${classes[said]}; ${percent(p[target])} for ${classes[target]}`)
    shown.forEach((c, j) => {
      const { bar, name } = columns[j], height = Math.max(.8, 44 * p[c])
      bar.setAttribute('y', 47 - height); bar.setAttribute('height', height); bar.setAttribute('class', c === said ? 'kd-said' : '')
      bar.dataset.class = c; bar.dataset.p = p[c].toFixed(6)
      name.textContent = middle(short[c], Math.max(2, Math.floor(step / 7))); name.setAttribute('class', c === target ? 'kd-bold' : '')
    })
  }
  return { root, cover, show }
}

// ---- the curve of the last moves ----

function curve(nets) {
  const W = 460, H = 168, left = 42, right = 116, top = 8, bottom = 22
  const svg = make('svg', { viewBox: `0 0 ${W} ${H}`, class: 'kd-plot kd-moves', role: 'img' })
  const y = v => top + (1 - v) * (H - top - bottom)
  for (const v of [0, .5, 1]) svg.append(make('line', { x1: left, x2: W - right, y1: y(v), y2: y(v), class: 'kd-axis' }),
    make('text', { x: left - 5, y: y(v) + 4, 'text-anchor': 'end' }, percent(v)))
  const lines = nets.map(n => make('polyline', { fill: 'none', stroke: n.colour, 'stroke-width': 2.2, 'stroke-dasharray': n.dash, 'stroke-linejoin': 'round' }))
  const dots = nets.map(n => make('circle', { r: 3.2, fill: n.colour })), names = nets.map(n => make('text', { x: W - right + 24 }, middle(n.name, 14)))
  const ties = nets.map(n => make('line', { stroke: n.colour, 'stroke-width': 1 })), what = make('text', { x: left, y: H - 4, class: 'kd-quiet' })
  svg.append(...ties, ...lines, ...dots, ...names, what)
  return { root: svg, update(moves, target) {
    const w = W - right - left, x = i => left + (moves.length < 2 ? w : i * w / (moves.length - 1)), last = moves.at(-1)
    const order = nets.map((_, k) => k).sort((a, b) => last.trust[b] - last.trust[a]), at = []
    let floor = -Infinity
    for (const k of order) at[k] = floor = Math.max(y(last.trust[k]), floor + 14)
    const over = Math.max(0, floor - (H - bottom + 4))
    nets.forEach((n, k) => {
      lines[k].setAttribute('points', moves.map((m, i) => `${x(i).toFixed(1)},${y(m.trust[k]).toFixed(1)}`).join(' '))
      dots[k].setAttribute('cx', x(moves.length - 1)); dots[k].setAttribute('cy', y(last.trust[k]))
      names[k].setAttribute('y', at[k] - over + 4)
      for (const [a, v] of Object.entries({ x1: W - right + 5, y1: y(last.trust[k]), x2: W - right + 21, y2: at[k] - over })) ties[k].setAttribute(a, v)
    })
    what.textContent = moves.length < 2 ? 'Change the picture: each move adds a point.' : `${moves.length - 1} move${moves.length > 2 ? 's' : ''}: ${last.what}`
    svg.setAttribute('aria-label', `Trust in ${target} after ${moves.length - 1} moves: ` + nets.map((n, k) =>
      `${n.name} ${percent(moves[0].trust[k])} to ${percent(last.trust[k])}`).join('; '))
  } }
}

// ---- what was measured on many pictures ----

function counted({ measured, presets, of }) {
  const cell = (v, first) => {
    const fall = Math.max(0, first - v)
    return make('td', { style: `background:color-mix(in srgb, #D55E00 ${Math.round(45 * fall)}%, transparent)` }, String(Math.round(100 * v)))
  }
  const head = make('tr', {}, make('td', {}), ...['As it is', ...presets.map(p => p.short)].map(t => make('th', { scope: 'col' }, t)))
  const rows = measured.map(([name, values]) => make('tr', {}, make('th', { scope: 'row' }, name), ...values.map(v => cell(v, values[0]))))
  const table = make('table', { class: 'kd-counts' }, make('caption', {}, of), make('thead', {}, head), make('tbody', {}, ...rows))
  const say = p => make('li', {}, make('strong', {}, p.title), ` ${p.text} `, make('span', { class: 'kd-quiet' }, p.verdict))
  return make('section', { class: 'kd-card' }, make('h2', {}, 'What these changes show'),
    rows.length ? make('div', { class: 'kd-scroll', tabindex: 0, role: 'region', 'aria-label': 'Accuracy after each change' }, table) : null,
    make('ul', { class: 'kd-presets' }, ...presets.map(say)))
}

// ---- the view ----

function draw(model, el) {
  const meta = model.get('meta'), [H, W] = meta.size, all = new Uint8Array(bytes(model, 'pixels')), truth = new Int32Array(bytes(model, 'y'))
  const weights = bytes(model, 'weights'), classes = meta.classes, short = labels(classes, 9), calm = matchMedia('(prefers-reduced-motion: reduce)')
  const nets = meta.nets.map(n => network({ ...n.graph, weights: weights.slice(n.at, n.at + n.bytes) }))
  const now = { base: null, edit: { ...NEUTRAL }, target: -1, moves: [], undo: [], tool: 'move', colour: 'white', covered: false, game: null, seed: 0, timer: 0, last: '' }
  const stored = i => Float32Array.from(all.subarray(i * H * W * 3, (i + 1) * H * W * 3), v => v / 255)
  const T = () => model.get('T')

  // -- answers

  function ask(p) {
    return nets.map((net, k) => {
      const { answer, heads } = net.run(p), most = z => z.reduce((best, v, c) => v > z[best] ? c : best, 0)
      return { z: answer, said: most(answer), heads: Object.fromEntries(meta.nets[k].heads.map(h => [h, most(heads[h])])) }
    })
  }
  const soft = said => said.map(s => ({ ...s, p: softmax(s.z, 0, classes.length, T()) }))
  const majority = said => said.map(s => s.said).sort((a, b) => said.filter(s => s.said === b).length - said.filter(s => s.said === a).length)[0]

  function move(what) {                              // ask all networks about the picture as it is now
    now.shown = edited(now.base, H, W, now.edit)
    now.said = soft(ask(now.shown))
    if (now.target < 0) now.target = majority(now.said)
    now.moves.push({ what, said: now.said })
    if (now.moves.length > MOVES) now.moves.splice(1, 1)      // the first one is what all are compared with
    update()
  }

  const cards = meta.nets.map(n => card(n, classes, short)), line = curve(meta.nets)
  const verdict = make('p', { class: 'kd-verdict' }), meter = make('div', { class: 'kd-meter' }, make('span')), apart = make('p', { class: 'kd-quiet kd-apart' })
  const status = make('p', { role: 'status', class: 'kd-hidden' }), title = make('h2', {}), stage = make('canvas', { class: 'kd-screen' }), was = make('canvas', { class: 'kd-was' })

  function update() {
    const t = now.target, trust = now.moves.map(m => ({ what: m.what, trust: m.said.map(s => softmax(s.z, 0, classes.length, T())[t]) }))
    const mean = classes.map((_, c) => now.said.reduce((s, o) => s + o.p[c], 0))
    const shown = [...mean.keys()].sort((a, b) => mean[b] - mean[a]).slice(0, SHOWN).sort((a, b) => a - b)
    paint(stage, now.shown, H, W)
    title.textContent = `Trust in ${middle(classes[t], 20)} over your last moves`
    block.hidden = now.covered
    if (now.covered) { cards.forEach((c, k) => c.cover(t, trust[0].trust[k])); verdict.textContent = 'Covered. Guess first, then look.'; apart.textContent = '\u00a0'; meter.firstChild.style.width = 0; return }
    cards.forEach((c, k) => c.show(now.said[k], shown, t, trust[0].trust[k]))
    const js = jensenShannon(now.said.map(s => s.p)) / Math.log(Math.max(2, Math.min(nets.length, classes.length))), lead = majority(now.said), n = now.said.filter(s => s.said === lead).length
    verdict.textContent = n === nets.length ? `All ${n} say ${classes[lead]}.` : `${n} of ${nets.length} say ${classes[lead]}.`
    if (now.truth >= 0 && lead !== now.truth) verdict.textContent += ` It is labelled ${classes[now.truth]}.`
    meter.firstChild.style.width = `${100 * js}%`; apart.textContent = `Disagreement ${percent(js)}`
    line.update(trust, classes[t])
    status.textContent = `${verdict.textContent} ${apart.textContent}`
  }

  // -- changes

  function remember(what) {                          // so that undo can take a whole gesture back
    if (what === now.last && !what.startsWith('paint')) return
    now.undo.push({ base: now.base, edit: { ...now.edit } }); now.last = what
    if (now.undo.length > 60) now.undo.shift()
  }
  function change(edit, what) { stop(); remember(Object.keys(edit).join()); Object.assign(now.edit, edit); tellControls(); move(what) }
  function stop() { clearTimeout(now.timer) }
  function begin(base, target, label) {              // another picture
    stop(); Object.assign(now, { base, edit: { ...NEUTRAL }, target, truth: target, moves: [], undo: [], last: '', label })
    paint(was, base, H, W); tellControls(); move('the picture itself')
  }
  function undo() {
    const old = now.undo.pop()
    if (!old) return
    stop(); Object.assign(now, old, { last: '' }); tellControls(); move('undone')
  }
  function again() { const { label } = now; begin(now.first, now.truth, label) }
  function choose(i) {
    now.first = stored(i)
    begin(now.first, truth[i], meta.labels[i])
    strip.querySelectorAll('button').forEach((b, j) => { b.setAttribute('aria-selected', i === j); b.tabIndex = i === j ? 0 : -1 })
    if (model.get('selected') !== i) { model.set('selected', i); model.save_changes() }
  }
  function bake() { now.base = now.shown; now.edit = { ...NEUTRAL }; tellControls() }      // what is seen is what is painted on

  // -- presets and the game

  function play(key, then = () => {}) {
    stop(); remember('preset'); now.edit = { ...NEUTRAL }
    const steps = STEPS[key](W, ++now.seed), name = meta.presets.find(p => p.key === key).title.toLowerCase()
    const next = i => {
      Object.assign(now.edit, steps[i]); tellControls(); move(steps.length > 1 ? `${name}, ${i + 1}` : name)
      if (i + 1 < steps.length) { if (calm.matches) next(i + 1); else now.timer = setTimeout(() => next(i + 1), 170) } else { now.last = ''; then() }
    }
    next(0)
  }

  function question() {
    const g = now.game, preset = meta.presets[g.round]
    choose((g.first + g.round) % truth.length)
    const from = now.said.map(s => s.p[now.target])
    now.covered = true; now.edit = { ...NEUTRAL, ...STEPS[preset.key](W, ++now.seed).at(-1) }; tellControls(); move(preset.title.toLowerCase())
    panel.replaceChildren(make('p', { class: 'kd-ask' }, make('span', { class: 'kd-quiet' }, `Question ${g.round + 1} of ${meta.presets.length} · ${preset.title} `),
      make('strong', {}, `Whose trust in ${classes[now.target]} falls most?`)),
      make('div', { class: 'kd-choices', role: 'group', 'aria-label': 'Your guess' }, ...meta.nets.map((n, k) => button(n.name, () => reveal(k, from), { 'data-guess': n.name }))))
    lock(true); status.textContent = `${preset.title}. Whose trust in ${classes[now.target]} falls most?`
    panel.querySelector('button').focus({ preventScroll: true })
  }

  function reveal(guess, from) {
    const g = now.game, fall = now.said.map((s, k) => from[k] - s.p[now.target]), most = Math.max(...fall), right = fall[guess] >= most - .02
    const who = meta.nets.filter((_, k) => fall[k] >= most - .02).map(n => n.name)
    now.covered = false; g.right += right; g.round++; update()
    const fact = most < .02 ? 'Nobody’s trust falls by more than 2 points.' : `${who.slice(0, 3).join(', ')} lose${who.length > 1 ? '' : 's'} ${Math.round(100 * most)} points.`
    const onward = g.round < meta.presets.length ? button('Next question', question) : button('See your score', score)
    panel.replaceChildren(make('p', { class: 'kd-ask' }, make('strong', {}, right ? 'You saw it coming. ' : 'Not this time. '), fact), onward)
    lock(false); status.textContent = panel.textContent; onward.focus({ preventScroll: true })
  }

  function score() {
    const { right, first } = now.game, n = meta.presets.length, chance = n / nets.length
    const more = button('Play again', () => start(first + n)), done = button('Look around', leave)
    now.game = null
    panel.replaceChildren(make('p', { class: 'kd-ask' }, make('strong', {}, `You predicted ${right} of ${n}. `),
      `Blind guessing gets about ${fixed(chance, 1)}. One picture at a time says little: the numbers below are of many.`), make('div', { class: 'kd-choices' }, more, done))
    status.textContent = panel.textContent; more.focus({ preventScroll: true })
  }
  function start(first = model.get('selected')) { now.game = { round: 0, right: 0, first }; question() }
  function leave() { now.game = null; now.covered = false; lock(false); idle(); again(); panel.querySelector('button').focus({ preventScroll: true }) }
  function lock(on) { left.inert = on }
  function idle() {
    panel.replaceChildren(make('p', { class: 'kd-ask' }, make('strong', {}, 'Predict, then look. '), `The answers are covered, you guess who is shaken most: ${meta.presets.length} questions.`),
      button('Start', () => start(), { class: 'kd-main' }))
  }

  // -- the page

  const strip = make('div', { role: 'listbox', 'aria-label': 'Pictures', class: 'kd-strip' })
  meta.labels.forEach((label, i) => {
    const b = button(paint(make('canvas', { 'aria-hidden': 'true' }), stored(i), H, W), () => choose(i),
      { role: 'option', class: 'kd-thumb', 'aria-label': `picture ${label}${truth[i] < 0 ? '' : `, labelled ${classes[truth[i]]}`}` })
    strip.append(b)
  })
  roving(strip, () => [...strip.children], () => meta.labels.length, b => b.click())
  const file = make('input', { type: 'file', accept: 'image/*', class: 'kd-hidden', tabindex: -1, 'aria-label': 'A picture of your own' })
  async function take(f) {
    if (!f) return
    try { now.first = await loaded(f, H, W) } catch { status.textContent = verdict.textContent = `${f.name} is no picture that this browser can read.`; return }
    strip.querySelectorAll('button').forEach(b => b.setAttribute('aria-selected', false))
    begin(now.first, -1, 'of your own')
  }
  file.addEventListener('change', () => { take(file.files[0]); file.value = '' })

  const arrow = (dx, dy, text, name) => button(text, () => change({ dx: now.edit.dx + dx, dy: now.edit.dy + dy }, 'shift'), { 'aria-label': `Shift ${name} by one pixel`, class: 'kd-arrow' })
  const [tools] = toggles('Tool', [['move', 'Move'], ['draw', 'Draw'], ['cover', 'Cover']], 'move', t => { now.tool = t; paints.hidden = t !== 'draw' })
  const [paints] = toggles('Paint', Object.entries(PAINTS).map(([name, c]) =>
    [name, '', { 'aria-label': name, class: 'kd-paint', style: `background:rgb(${c.map(v => 255 * v)})` }]), 'white', c => { now.colour = c })
  paints.hidden = true

  const screen = make('div', { class: 'kd-easel', tabindex: 0, role: 'application', 'aria-label': 'The picture. Arrow keys shift it by one pixel; with the mouse or a finger, move, draw or cover.' }, stage)
  const place = e => { const b = stage.getBoundingClientRect(); return [(e.clientX - b.left) / b.width * W - .5, (e.clientY - b.top) / b.height * H - .5] }
  let grip = null
  screen.addEventListener('pointerdown', e => {
    if (e.button || left.inert) return
    stop(); grip = place(e); screen.setPointerCapture(e.pointerId)
    if (now.tool === 'move') { remember('drag'); grip.push(now.edit.dx, now.edit.dy); now.last = 'drag' } else { remember(`paint ${performance.now()}`); bake(); dab(grip) }
  })
  const dab = ([x, y]) => { now.base = dabbed(now.base, H, W, x, y, now.tool === 'draw' ? PAINTS[now.colour] : null, Math.max(2, W / 8)); move(now.tool === 'draw' ? 'drawn' : 'covered') }
  screen.addEventListener('pointermove', e => {
    if (!grip) return
    const [x, y] = place(e)
    if (now.tool !== 'move') return dab([x, y])
    const dx = Math.round(grip[2] + x - grip[0]), dy = Math.round(grip[3] + y - grip[1])
    if (dx !== now.edit.dx || dy !== now.edit.dy) { Object.assign(now.edit, { dx, dy }); move('moved') }
  })
  for (const end of ['pointerup', 'pointercancel']) screen.addEventListener(end, () => { grip = null; now.last = '' })
  screen.addEventListener('keydown', e => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key]
    if (by) { e.preventDefault(); change({ dx: now.edit.dx + by[0], dy: now.edit.dy + by[1] }, 'shift') }
  })
  screen.addEventListener('dragover', e => e.preventDefault())
  screen.addEventListener('drop', e => { e.preventDefault(); take(e.dataTransfer.files[0]) })

  const CONTROLS = [['turn', 'Turn', -180, 180, 5, v => `${v}°`], ['size', 'Size', .5, 2, .05, percent], ['colour', 'Colour', 0, 2, .05, percent],
    ['hue', 'Hue', -180, 180, 5, v => `${v}°`], ['noise', 'Noise', 0, .4, .02, percent], ['cover', 'Cover middle', 0, .8, .05, percent]]
  const knobs = CONTROLS.map(([key, name, min, max, step, say]) => {
    const [label, input, tell] = slider(name, { min, max, step, value: NEUTRAL[key], say }, v => change({ [key]: v }, name.toLowerCase()))
    return { key, label, input, tell }
  })
  const [patches, pressPatches] = toggles('Shuffle patches', [['0', 'whole'], ['2', '2×2'], ['4', '4×4']], '0', v => change({ shuffle: +v, seed: ++now.seed }, 'patches'))
  const [outline, pressOutline] = toggles('Silhouette', [['no', 'as it is'], ['yes', 'silhouette']], 'no', v => change({ silhouette: v === 'yes' }, 'silhouette'))
  function tellControls() {
    for (const { key, input, tell } of knobs) { input.value = now.edit[key]; tell() }
    pressPatches(String(now.edit.shuffle)); pressOutline(now.edit.silhouette ? 'yes' : 'no')
  }

  const told = make('p', { class: 'kd-quiet kd-told' }, meta.hint)
  const tries = make('div', { class: 'kd-tries', role: 'group', 'aria-label': 'Try this' }, ...meta.presets.map(p =>
    button(p.short, () => { told.textContent = p.text; play(p.key) }, { 'data-preset': p.key, title: p.title })))
  const panel = make('div', { class: 'kd-game' })
  const [warm, heat, tellHeat] = slider('Soften, T', { min: .5, max: 8, step: .5, value: T(), say: v => fixed(v, 1) }, v => { model.set('T', v); model.save_changes() })
  const block = make('section', { class: 'kd-card kd-p-curve' }, title, line.root)
  const left = make('div', { class: 'kd-col' },
    make('section', { class: 'kd-card kd-p-picture' }, make('h2', {}, 'The picture'), make('div', { class: 'kd-row' }, strip), file,
      make('div', { class: 'kd-row kd-work' }, screen, make('div', { class: 'kd-side' }, make('figure', {}, was, make('figcaption', {}, 'before')), tools,
        make('div', { class: 'kd-pad' }, arrow(0, -1, '↑', 'up'), arrow(-1, 0, '←', 'left'), arrow(1, 0, '→', 'right'), arrow(0, 1, '↓', 'down')))), paints, tries, told,
      make('div', { class: 'kd-row' }, button('Undo', undo), button('Start again', again), button('Your own picture…', () => file.click()))),
    make('section', { class: 'kd-card kd-p-knobs' }, make('h2', {}, 'Change it'), make('div', { class: 'kd-knobs' }, ...knobs.map(k => k.label)),
      make('div', { class: 'kd-row' }, patches, outline)))
  const right = make('div', { class: 'kd-col kd-wide' },
    make('section', { class: 'kd-card kd-p-answers' }, make('div', { class: 'kd-net-top' }, make('h2', {}, 'What they say'), warm), make('div', { class: 'kd-sum' }, verdict, apart), meter,
      make('ul', { class: 'kd-nets' }, ...cards.map(c => c.root))), block)
  const root = make('div', { class: 'kd kd-play' }, make('p', { class: 'kd-lead' }, meta.lead), make('section', { class: 'kd-card kd-p-game', 'aria-label': 'Predict, then look' }, panel), make('div', { class: 'kd-two' }, left, right),
    counted(meta), make('p', { class: 'kd-note' }, meta.note), status)
  keepKeys(root); el.replaceChildren(root)
  idle(); choose(Math.min(model.get('selected'), meta.labels.length - 1))

  return { close() { stop() }, outside: {
    selected() { const i = model.get('selected'); if (strip.children[i]?.getAttribute('aria-selected') !== 'true') choose(i) },
    T() { heat.value = T(); tellHeat(); now.said = soft(now.said); update() },
  } }
}

export default hosted({ draw })
