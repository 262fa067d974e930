// The playground: the reader changes a picture, and all networks answer at once, in the page.
import { card, counted, curve, percent } from './answers.js'
import { jensenShannon, softmax } from './bars.js'
import { bytes, fixed, labels, make, middle, slider } from './dom.js'
import { easel, loaded, paint } from './easel.js'
import { NEUTRAL, dabbed, edited } from './edits.js'
import { hosted } from './host.js'
import { keepKeys, roving } from './keys.js'
import { network } from './nets.js'

const MOVES = 24, SHOWN = 10                         // moves in the curve; classes with a bar
const PAINTS = { white: [1, 1, 1], black: [0, 0, 0], red: [.85, .15, .1], yellow: [1, .85, .1], green: [.1, .65, .3],
  blue: [.1, .35, .85] }

// What a preset does: its steps, one edit each, from the picture as it is
const STEPS = {
  shift: W => Array.from({ length: Math.min(6, W >> 2) }, (_, i) => ({ dx: i + 1 })),
  shuffle: (W, seed) => [{ shuffle: 4, seed }],
  silhouette: () => [{ silhouette: true }],
  grey: () => [{ colour: 0 }],
  noise: (W, seed) => [{ noise: .2, seed }],
  cover: () => [{ cover: .4 }],
}
const degrees = v => `${v}°`
const KNOBS = [['turn', 'Turn', -180, 180, 5, degrees], ['size', 'Size', .5, 2, .05, percent],
  ['colour', 'Colour', 0, 2, .05, percent], ['hue', 'Hue', -180, 180, 5, degrees],
  ['noise', 'Noise', 0, .4, .02, percent], ['cover', 'Cover middle', 0, .8, .05, percent]]

// ---- small parts ----

function button(text, onclick, attrs = {}) {
  const b = make('button', { type: 'button', ...attrs }, text)
  b.addEventListener('click', onclick)
  return b
}

function toggles(label, options, value, onpick) {    // one of a few buttons is pressed
  const group = make('div', { role: 'group', 'aria-label': label, class: 'kd-toggles' })
  const press = now => { for (const b of group.children) b.setAttribute('aria-pressed', b.dataset.value === now) }
  for (const [v, text, extra] of options) {
    group.append(button(text, () => { press(v); onpick(v) }, { 'data-value': v, ...extra }))
  }
  press(value)
  return [group, press]
}

const row = (...kids) => make('div', { class: 'kd-row' }, ...kids)
const box = (kind, ...kids) => make('section', { class: `kd-card ${kind}` }, ...kids)
const most = z => z.reduce((best, v, c) => v > z[best] ? c : best, 0)

function majority(said) {                            // what most networks say
  const votes = said.map(s => said.filter(o => o.said === s.said).length)
  return said[most(votes)].said
}

// ---- what the page was given ----

function given(model) {
  const meta = model.get('meta'), [H, W] = meta.size, weights = bytes(model, 'weights')
  const all = new Uint8Array(bytes(model, 'pixels')), truth = new Int32Array(bytes(model, 'y'))
  const nets = meta.nets.map(n => network({ ...n.graph, weights: weights.slice(n.at, n.at + n.bytes) }))
  const stored = i => Float32Array.from(all.subarray(i * H * W * 3, (i + 1) * H * W * 3), v => v / 255)
  function ask(p) {                                  // all networks: logits, decision, decisions of the heads
    return nets.map((net, k) => {
      const { answer, heads } = net.run(p)
      const each = meta.nets[k].heads.map(h => [h, most(heads[h])])
      return { z: answer, said: most(answer), heads: Object.fromEntries(each) }
    })
  }
  return { meta, H, W, truth, stored, ask, classes: meta.classes, short: labels(meta.classes, 9) }
}

// ---- the picture as it is now, and how it came to be ----

function pictureOf({ H, W, ask }, tell) {            // tell(): something has changed
  const now = { base: null, first: null, edit: { ...NEUTRAL }, target: -1, truth: -1, moves: [], seed: 0 }
  let past = [], last = '', timer = 0

  function move(what) {                              // ask about the picture as it is now
    now.shown = edited(now.base, H, W, now.edit)
    now.said = ask(now.shown)
    if (now.target < 0) now.target = majority(now.said)          // a picture without a label: what most say at first
    now.moves.push({ what, said: now.said })
    if (now.moves.length > MOVES) now.moves.splice(1, 1)          // the first one is what all are compared with
    tell()
  }
  function remember(kind) {                          // so that undo takes a whole gesture back
    clearTimeout(timer)
    if (kind !== last) past.push({ base: now.base, edit: { ...now.edit } })
    last = kind
    if (past.length > 60) past.shift()
  }
  function steps(list, name, wait) {                 // one after the other, or at once where nothing should move
    Object.assign(now.edit, list[0])
    move(list.length > 1 || list[0].dx > 1 ? `${name}, ${list[0].dx}` : name)
    if (list.length < 2) last = ''
    else if (wait) timer = setTimeout(() => steps(list.slice(1), name, wait), wait)
    else steps(list.slice(1), name, wait)
  }
  return { now, move,
    begin(base, truth) {
      clearTimeout(timer); past = []; last = ''
      Object.assign(now, { base, first: base, edit: { ...NEUTRAL }, target: truth, truth, moves: [] })
      move('the picture itself')
    },
    change(edit, what) { remember(what); Object.assign(now.edit, edit); move(what) },
    lift() { remember(Symbol('stroke')); now.base = now.shown; now.edit = { ...NEUTRAL } },     // paint what is seen
    dab(x, y, colour) {
      now.base = dabbed(now.base, H, W, x, y, colour, Math.max(2, W / 8))
      move(colour ? 'drawn' : 'covered')
    },
    rest() { last = '' },
    undo() {
      clearTimeout(timer); last = ''
      if (past.length) { Object.assign(now, past.pop()); move('undone') }
    },
    preset(key, name, wait, only) {                  // only: its last step
      remember(Symbol(key)); now.edit = { ...NEUTRAL }
      const list = STEPS[key](W, ++now.seed)
      steps(only ? list.slice(-1) : list, name.toLowerCase(), wait)
    },
    stop() { clearTimeout(timer) },
  }
}

// ---- what they say ----

function answersOf({ meta, classes, short }, model) {
  const T = () => model.get('T'), soft = s => softmax(s.z, 0, classes.length, T())
  const cards = meta.nets.map(n => card(n, classes, short)), line = curve(meta.nets), title = make('h2')
  const verdict = make('p', { class: 'kd-verdict' }), level = make('span')
  const apart = make('p', { class: 'kd-quiet kd-apart' }), n = cards.length, across = n === 4 ? 2 : Math.min(n, 3)
  const [warm, heat, tellHeat] = slider('Soften, T', { min: .5, max: 8, step: .5, value: T(), say: v => fixed(v, 1) },
    v => { model.set('T', v); model.save_changes() })
  const top = make('div', { class: 'kd-net-top' }, make('h2', {}, 'What they say'), warm)
  const root = box('kd-p-answers', top, make('div', { class: 'kd-sum' }, verdict, apart),
    make('div', { class: 'kd-meter' }, level), make('ul', { class: 'kd-nets', style: `--across: ${across}` }, ...cards.map(c => c.root)))
  const history = box('kd-p-curve', title, line.root)
  const brief = make('ul', { class: 'kd-brief', 'aria-hidden': 'true' }, ...cards.map(c => c.brief))

  function counts(said, truth) {                     // how many agree, and how far apart all are
    const lead = majority(said), n = said.filter(s => s.said === lead).length, all = n === said.length ? 'All ' : ''
    const js = jensenShannon(said.map(soft)) / Math.log(Math.max(2, Math.min(said.length, classes.length)))
    verdict.textContent = `${all}${n}${all ? '' : ` of ${said.length}`} say ${classes[lead]}.`
    if (truth >= 0 && lead !== truth) verdict.textContent += ` It is labelled ${classes[truth]}.`
    apart.textContent = `Disagreement ${percent(js)}`; level.style.width = `${100 * js}%`
  }
  function covered(target, before) {
    cards.forEach((c, k) => c.cover(target, before[k]))
    verdict.textContent = 'Covered. Guess first, then look.'; apart.textContent = '\u00a0'; level.style.width = 0
  }
  return { root, brief, history, verdict, soft,
    sentence: () => `${verdict.textContent} ${apart.textContent}`,
    heat() { heat.value = T(); tellHeat() },
    update({ said, moves, target, truth }, cover) {
      const trust = moves.map(m => ({ what: m.what, trust: m.said.map(s => soft(s)[target]) }))
      history.hidden = cover
      if (cover) return covered(target, trust[0].trust)
      const p = said.map(soft), sums = classes.map((_, c) => p.reduce((s, q) => s + q[c], 0))
      const best = [...sums.keys()].sort((a, b) => sums[b] - sums[a]).slice(0, SHOWN).sort((a, b) => a - b)
      cards.forEach((c, k) => c.show({ ...said[k], p: p[k] }, best, target, trust[0].trust[k]))
      counts(said, truth)
      title.textContent = `Trust in ${middle(classes[target], 20)} over your last moves`
      line.update(trust, classes[target])
    },
  }
}

// ---- predict, then look ----

// on: { here() -> picture; ask(picture, preset) -> each network's trust before, and the changed picture is covered;
//       class() -> name; trust() -> each network's trust now; open(); home(); say(text) }
function gameOf({ meta }, on) {
  const root = box('kd-p-game'), panel = make('div', { class: 'kd-game' }), n = meta.presets.length
  root.setAttribute('aria-label', 'Predict, then look'); root.append(panel)
  let round = 0, right = 0, first = 0

  function put(strong, text, ...buttons) {
    panel.replaceChildren(make('p', { class: 'kd-ask' }, make('strong', {}, strong), text),
      make('div', { class: 'kd-choices' }, ...buttons))
    on.say(`${strong}${text}`)
  }
  const focus = () => panel.querySelector('button').focus({ preventScroll: true })

  function idle() {
    const text = `The answers are covered, and you guess who is shaken most: ${n} questions.`
    put('Predict, then look. ', text, button('Start', () => start(on.here()), { class: 'kd-main' }))
  }
  function start(from) { round = right = 0; first = from; question() }
  function question() {
    const before = on.ask(first + round, meta.presets[round]), { title } = meta.presets[round]
    put(`Whose trust in ${on.class()} falls most?`, ` Question ${round + 1} of ${n}: ${title.toLowerCase()}.`,
      ...meta.nets.map((o, k) => button(o.name, () => reveal(k, before), { 'data-guess': o.name })))
    focus()
  }
  function reveal(guess, before) {
    const after = on.trust(), fall = before.map((v, k) => v - after[k])
    const top = Math.max(...fall), near = v => v >= top - .02
    const names = meta.nets.filter((_, k) => near(fall[k])).map(o => o.name), more = names.length > 1 ? '' : 's'
    const fact = top < .02 ? 'Nobody loses more than 2 points.'
      : `${names.slice(0, 3).join(', ')} lose${more} ${Math.round(100 * top)} points.`
    right += near(fall[guess]); round++
    on.open()
    const next = round < n ? button('Next question', question) : button('See your score', score)
    put(near(fall[guess]) ? 'You saw it coming. ' : 'Not this time. ', fact, next)
    focus()
  }
  function score() {
    const blind = fixed(n / meta.nets.length, 1), again = button('Play again', () => start(first + n))
    const text = `Blind guessing gets about ${blind}. One picture at a time says little: the numbers below are of many.`
    put(`You predicted ${right} of ${n}. `, text, again, button('Look around', leave))
    focus()
  }
  function leave() { idle(); on.home(); focus() }
  idle()
  return { root }
}

// ---- the tools ----

function toolsOf(picture) {                           // everything that changes the picture, but its easel
  const { now } = picture, state = { tool: 'move', colour: 'white' }
  const shift = (dx, dy) => picture.change({ dx: now.edit.dx + dx, dy: now.edit.dy + dy }, 'shift')
  const arrow = (dx, dy, text, name) =>
    button(text, () => shift(dx, dy), { 'aria-label': `Shift ${name} by one pixel`, class: 'kd-arrow' })
  const pad = make('div', { class: 'kd-pad' },
    arrow(0, -1, '↑', 'up'), arrow(-1, 0, '←', 'left'), arrow(1, 0, '→', 'right'), arrow(0, 1, '↓', 'down'))
  const swatch = ([name, c]) =>
    [name, '', { 'aria-label': name, class: 'kd-paint', style: `background:rgb(${c.map(v => 255 * v)})` }]
  const [paints] = toggles('Paint', Object.entries(PAINTS).map(swatch), 'white', c => { state.colour = c })
  const [kinds] = toggles('Tool', [['move', 'Move'], ['draw', 'Draw'], ['cover', 'Cover']], 'move',
    t => { state.tool = t; paints.hidden = t !== 'draw' })
  paints.hidden = true

  const knobs = KNOBS.map(([key, name, min, max, step, say]) => {
    const attrs = { min, max, step, value: NEUTRAL[key], say }
    const [label, input, tell] = slider(name, attrs, v => picture.change({ [key]: v }, name.toLowerCase()))
    return { key, label, input, tell }
  })
  const [patches, pressPatches] = toggles('Shuffle patches', [['0', 'whole'], ['2', '2×2'], ['4', '4×4']], '0',
    v => picture.change({ shuffle: +v, seed: ++now.seed }, 'patches'))
  const [outline, pressOutline] = toggles('Silhouette', [['no', 'as it is'], ['yes', 'silhouette']], 'no',
    v => picture.change({ silhouette: v === 'yes' }, 'silhouette'))
  const sliders = make('div', { class: 'kd-knobs' }, ...knobs.map(k => k.label))
  return { state, shift, pad, kinds, paints,
    knobs: box('kd-p-knobs', make('h2', {}, 'Change it'), sliders, row(patches, outline)),
    tell() {                                         // the controls say what is done to the picture
      for (const { key, input, tell } of knobs) { input.value = now.edit[key]; tell() }
      pressPatches(String(now.edit.shuffle)); pressOutline(now.edit.silhouette ? 'yes' : 'no')
    } }
}

function presetsOf({ meta }, picture, calm) {
  const told = make('p', { class: 'kd-quiet kd-told' }, meta.hint)
  const play = p => { told.textContent = p.text; picture.preset(p.key, p.title, calm.matches ? 0 : 170) }
  const one = p => button(p.short, () => play(p), { 'data-preset': p.key, title: p.title })
  return [make('div', { class: 'kd-tries', role: 'group', 'aria-label': 'Try this' }, ...meta.presets.map(one)), told]
}

function stripOf({ meta, H, W, truth, stored, classes }, choose) {
  const strip = make('div', { role: 'listbox', 'aria-label': 'Pictures', class: 'kd-strip' })
  meta.labels.forEach((label, i) => {
    const says = `picture ${label}${truth[i] < 0 ? '' : `, labelled ${classes[truth[i]]}`}`
    const small = paint(make('canvas', { 'aria-hidden': 'true' }), stored(i), H, W)
    strip.append(button(small, () => choose(i), { role: 'option', class: 'kd-thumb', 'aria-label': says }))
  })
  roving(strip, () => [...strip.children], () => meta.labels.length, b => b.click())
  return { strip, mark(i) {
    for (const [j, b] of [...strip.children].entries()) {
      b.setAttribute('aria-selected', i === j); b.tabIndex = j === Math.max(0, i) ? 0 : -1
    }
  } }
}

// ---- the view ----

function draw(model, el) {
  const data = given(model), { meta, H, W, truth, stored, classes } = data
  const calm = matchMedia('(prefers-reduced-motion: reduce)')
  const status = make('p', { role: 'status', class: 'kd-hidden' }), was = make('canvas', { class: 'kd-was' })
  const left = make('div', { class: 'kd-col' })
  let covered = false

  const answers = answersOf(data, model)
  function tell() {
    paint(stand.screen, picture.now.shown, H, W)
    answers.update(picture.now, covered)
    tools.tell()
    if (!covered) status.textContent = answers.sentence()
  }
  const picture = pictureOf(data, tell), { now } = picture, tools = toolsOf(picture)
  const stand = easel(H, W, {
    free: () => !left.inert, moves: () => tools.state.tool === 'move', grab: () => [now.edit.dx, now.edit.dy],
    drag: (dx, dy) => { if (dx !== now.edit.dx || dy !== now.edit.dy) picture.change({ dx, dy }, 'moved') },
    nudge: tools.shift, lift: picture.lift, drop: picture.rest,
    dab: (x, y) => picture.dab(x, y, tools.state.tool === 'draw' ? PAINTS[tools.state.colour] : null),
  })

  function choose(i) {
    picture.begin(stored(i), truth[i])
    paint(was, now.first, H, W); mark(i)
    if (model.get('selected') !== i) { model.set('selected', i); model.save_changes() }
  }
  async function take(f) {                           // a picture of the reader's own
    if (!f) return
    let own
    try { own = await loaded(f, H, W) } catch {
      status.textContent = answers.verdict.textContent = `${f.name} is no picture that this browser can read.`
      return
    }
    picture.begin(own, -1); paint(was, own, H, W); mark(-1)
  }
  const { strip, mark } = stripOf(data, choose)
  const file = make('input', { type: 'file', accept: 'image/*', class: 'kd-hidden', tabindex: -1 })
  file.setAttribute('aria-label', 'Your own picture')
  file.addEventListener('change', () => { take(file.files[0]); file.value = '' })
  stand.root.addEventListener('dragover', e => e.preventDefault())
  stand.root.addEventListener('drop', e => { e.preventDefault(); take(e.dataTransfer.files[0]) })

  const trust = () => now.said.map(s => answers.soft(s)[now.target])
  const game = gameOf(data, {
    ask(i, { key, title }) {                         // picture i, and one preset of it behind the cover
      choose(i % truth.length)
      const before = trust()
      covered = left.inert = true
      picture.preset(key, title, 0, true)
      return before
    },
    class: () => classes[now.target], trust,
    here: () => model.get('selected'), open() { covered = left.inert = false; tell() },
    home: () => picture.begin(now.first, now.truth), say: text => { status.textContent = text },
  })
  const before = make('figure', {}, was, make('figcaption', {}, 'before'))
  const side = make('div', { class: 'kd-side' }, before, tools.kinds, tools.pad)
  left.append(box('kd-p-picture', make('h2', {}, 'The picture'), row(strip), file,
    make('div', { class: 'kd-row kd-work' }, stand.root, side), tools.paints, ...presetsOf(data, picture, calm),
    row(button('Undo', picture.undo), button('Start again', () => picture.begin(now.first, now.truth)),
      button('Your own picture…', () => file.click()))), tools.knobs)
  const right = make('div', { class: 'kd-col kd-wide' }, answers.brief, answers.root, answers.history)
  const reading = make('details', { class: 'kd-reading' }, make('summary', {}, 'How each of them looks at a picture'),
    ...meta.reading.map(text => make('p', {}, text)))
  const root = make('div', { class: 'kd kd-play' }, make('p', { class: 'kd-lead' }, meta.lead), reading, game.root,
    make('div', { class: 'kd-two' }, left, right), counted(meta), make('p', { class: 'kd-note' }, meta.note), status)
  keepKeys(root); el.replaceChildren(root)
  choose(Math.min(model.get('selected'), meta.labels.length - 1))

  return { close: picture.stop, outside: {
    selected() {
      const i = model.get('selected')
      if (strip.children[i]?.getAttribute('aria-selected') !== 'true') choose(i)
    },
    T() { answers.heat(); tell() },
  } }
}

export default hosted({ draw })
