// The cache inspector: what is stored, whether every file is whole, and any sample in any of its views with all answers.
import { bytes, fixed, floats, labels, make, middle, slider } from './dom.js'
import { keepKeys, roving } from './keys.js'
import { closeAtlas, openAtlas, tile } from './atlas.js'
import { bars, jensenShannon, softmax } from './bars.js'
import { hosted } from './host.js'

function draw(model, host) {
  const meta = model.get('meta'), { names, classes, views, labels: samples } = meta, C = classes.length, n = samples.length
  const Z = floats(bytes(model, 'logits')), y = new Int32Array(bytes(model, 'y')), atlas = meta.mime ? openAtlas(model) : null, short = labels(classes, 9)
  const view = { sample: model.get('selected'), view: model.get('view') }
  const set = (key, value) => { model.set(key, value); model.save_changes() }
  const root = make('section', { class: 'kd', 'aria-label': 'What the cache holds', 'data-lm-suppress-shortcuts': 'true' })
  keepKeys(root)
  host.replaceChildren(root)

  const facts = make('dl', { class: 'kd-facts' }, ...meta.facts.flatMap(([k, v]) => [make('dt', {}, k), make('dd', {}, v)]))
  const broken = meta.files.filter(f => f.state !== 'whole')
  const whole = make('p', { class: broken.length ? 'kd-bad' : 'kd-good' },
    broken.length ? `✗ ${broken.length} of ${meta.files.length} files are not whole:` : `✓ all ${meta.files.length} files are as they were written`)
  const list = make('ul', { class: 'kd-files' }, ...broken.slice(0, 20).map(f => make('li', {}, make('b', {}, f.state), ` ${f.file}`)))

  const strip = make('div', { class: 'kd-list', role: 'listbox', 'aria-label': 'Samples', tabindex: '-1' })
  samples.forEach((label, i) => {
    const name = `sample ${label}${y[i] >= 0 ? ', label ' + classes[y[i]] : ''}`
    const option = make('button', { type: 'button', role: 'option', class: 'kd-thumb', 'data-index': i, title: name, 'aria-label': name },
      atlas ? tile(atlas, i * views, 44) : make('span', { class: 'kd-caption' }, middle(label, 7)))
    option.addEventListener('click', () => choose(i))
    strip.append(option)
  })
  roving(strip, () => [...strip.children], nodes => nodes.filter(b => b.offsetTop === nodes[0].offsetTop).length, b => choose(+b.dataset.index))
  const [viewBox, input, tell] = slider('View', { min: 1, max: views, step: 1, value: view.view + 1, say: v => `${v} of ${views}` }, v => { view.view = v - 1; set('view', v - 1); paint() })
  const status = make('p', { class: 'kd-status', role: 'status', 'aria-live': 'polite' }), detail = make('div')
  root.append(make('div', { class: 'kd-body' }, make('div', { class: 'kd-narrow' }, facts, whole, list),
    make('div', { class: 'kd-right' }, strip, views > 1 ? make('div', { class: 'kd-controls' }, viewBox) : '', status, detail)), make('p', { class: 'kd-note' }, meta.note))

  function choose(i) { view.sample = i; set('selected', i); paint() }

  function paint() {
    const i = view.sample, v = view.view
    for (const b of strip.children) { const on = +b.dataset.index === i; b.setAttribute('aria-selected', String(on)); b.tabIndex = on ? 0 : -1 }
    if (!n) return
    const P = names.map((_, k) => softmax(Z, ((k * n + i) * views + v) * C, C, 1))
    const rows = names.map((name, k) => ({ name, colour: meta.colours[k], p: P[k], says: P[k].indexOf(Math.max(...P[k])) }))
    status.textContent = `Sample ${samples[i]}, view ${v + 1} of ${views}` + (y[i] >= 0 ? `, label ${classes[y[i]]}` : '') + ': ' + rows.map(r => `${r.name} says ${classes[r.says]}`).join(', ') +
      (P.length > 1 ? `; Jensen-Shannon divergence ${fixed(jensenShannon(P), 3)}` : '') + '.'
    detail.replaceChildren(atlas ? make('div', { class: 'kd-picture' }, tile(atlas, i * views + v, 112)) : '', bars(rows, { classes, short, truth: y[i], what: 'Stored answers' }))
  }

  paint()
  return { close: () => atlas && closeAtlas(atlas), outside: {
    selected: () => { view.sample = model.get('selected'); paint() },
    view: () => { view.view = model.get('view'); input.value = view.view + 1; tell(); paint() } } }
}

export default hosted({ draw })
