// What every view does when it appears, changes and goes. `view.draw(model, el)` returns { close, outside }: how to let go of what
// it holds, and what to do when Python changes a value.
import { make } from './dom.js'

export function hosted(view) {
  return { render({ model, el }) {
    let now = null, hide = null, id = null
    const heard = name => { if (model.get('meta').id === id) now.outside[name]?.() }      // else `start` is about to come
    const names = model.get('meta').values.map(name => [`change:${name}`, () => heard(name)])
    const start = () => {
      now?.close(); hide?.remove()
      now = view.draw(model, el)
      id = model.get('meta').id
      hide = make('style', {}, `.kd-snap-${id}{display:none}`)      // the picture stands in only while we are not there
      document.head.append(hide)
    }
    names.push(['change:meta', start])                // the cell ran again: same model, other data
    for (const [event, f] of names) model.on(event, f)
    start()
    return () => { for (const [event, f] of names) model.off(event, f); now.close(); hide.remove() }
  } }
}
