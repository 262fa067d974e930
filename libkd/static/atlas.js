// Many small pictures in one sheet: two thousand separate images would be slow.
import { bytes, make } from './dom.js'

export function openAtlas(model) {                   // the sheet of a view, as a picture the browser can cut from
  const { mime, tile: side, cols } = model.get('meta')
  return { url: URL.createObjectURL(new Blob([bytes(model, 'atlas')], { type: mime })), side, cols }
}

export const closeAtlas = atlas => URL.revokeObjectURL(atlas.url)

export function tile(atlas, i, side) {               // picture `i`, `side` pixels wide
  const scale = side / atlas.side, x = (i % atlas.cols) * side, y = Math.floor(i / atlas.cols) * side
  const style = `width:${side}px;height:${side}px;background-image:url(${atlas.url});background-position:-${x}px -${y}px;` +
    `background-size:${atlas.cols * side}px auto;image-rendering:${scale > 1.5 ? 'pixelated' : 'auto'}`
  return make('span', { class: 'kd-tile', style, 'aria-hidden': 'true' })
}
