// The picture on its easel: shown large; moved, drawn on or covered with a pointer or the keyboard.
import { make } from './dom.js'

export function paint(canvas, p, H, W) {             // pixels from 0 to 1 onto a canvas
  const image = new ImageData(W, H)
  for (let i = 0; i < H * W; i++) {
    for (let k = 0; k < 3; k++) image.data[4 * i + k] = Math.round(255 * p[3 * i + k])
    image.data[4 * i + 3] = 255
  }
  canvas.width = W; canvas.height = H
  canvas.getContext('2d').putImageData(image, 0, 0)
  return canvas
}

export async function loaded(file, H, W) {           // the middle of a file's picture, at the size of the networks
  const whole = await createImageBitmap(file), scale = Math.max(W / whole.width, H / whole.height)
  const pen = make('canvas', { width: W, height: H }).getContext('2d')
  const w = whole.width * scale, h = whole.height * scale
  pen.imageSmoothingQuality = 'high'
  pen.drawImage(whole, (W - w) / 2, (H - h) / 2, w, h)
  const { data } = pen.getImageData(0, 0, W, H), p = new Float32Array(H * W * 3)
  for (let i = 0; i < H * W; i++) for (let k = 0; k < 3; k++) p[3 * i + k] = data[4 * i + k] / 255
  return p
}

const HELP = 'The picture. With Move, arrow keys shift it by one pixel; with Draw and Cover they lead the brush, and ' +
  'space paints. Mouse and finger do the same.'
const within = (v, n) => Math.min(n - 1, Math.max(0, v))
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

// on: { free(): may it be touched; moves(): is Move the tool; grab() -> [dx, dy] of now; drag(dx, dy); nudge(dx, dy);
//       lift(): a stroke begins; dab(x, y); drop(): the pointer is gone }
export function easel(H, W, on) {
  const screen = make('canvas', { class: 'kd-screen' }), ring = make('span', { class: 'kd-brush', hidden: '' })
  const root = make('div', { class: 'kd-easel', tabindex: 0, role: 'application', 'aria-label': HELP }, screen, ring)
  const brush = { x: W >> 1, y: H >> 1 }
  let grip = null                                    // where the pointer came down, and where the picture was then

  function place(e) {
    const b = screen.getBoundingClientRect()
    return [(e.clientX - b.left) / b.width * W - .5, (e.clientY - b.top) / b.height * H - .5]
  }
  function point() {                                 // the brush of the keyboard
    ring.hidden = on.moves() || document.activeElement !== root
    ring.style.cssText = `left:${100 * brush.x / W}%;top:${100 * brush.y / H}%;width:${100 / W}%;height:${100 / H}%`
  }
  root.addEventListener('pointerdown', e => {
    if (e.button || !on.free()) return
    root.setPointerCapture(e.pointerId)
    grip = [...place(e), ...on.grab()]
    if (!on.moves()) { on.lift(); on.dab(grip[0], grip[1]) }
  })
  root.addEventListener('pointermove', e => {
    if (!grip) return
    const [x, y] = place(e)
    if (on.moves()) on.drag(Math.round(grip[2] + x - grip[0]), Math.round(grip[3] + y - grip[1]))
    else on.dab(x, y)
  })
  for (const end of ['pointerup', 'pointercancel']) root.addEventListener(end, () => { grip = null; on.drop() })
  root.addEventListener('keydown', e => {
    const by = ARROWS[e.key], paints = !on.moves() && (e.key === ' ' || e.key === 'Enter')
    if (!on.free() || !(by || paints)) return
    e.preventDefault()
    if (paints) { on.lift(); on.dab(brush.x, brush.y); on.drop() }
    else if (on.moves()) on.nudge(...by)
    else { brush.x = within(brush.x + by[0], W); brush.y = within(brush.y + by[1], H) }
    point()
  })
  for (const event of ['focus', 'blur']) root.addEventListener(event, point)
  return { root, screen, point }
}
