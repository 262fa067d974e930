// What a reader can do to a picture. Pixels are (height, width, 3) from 0 to 1; nothing here touches the page.

export const NEUTRAL = { dx: 0, dy: 0, turn: 0, size: 1, hue: 0, colour: 1, noise: 0, shuffle: 0, silhouette: false,
  cover: 0, seed: 1 }

export function dice(seed) {                         // numbers from 0 to 1, the same for the same seed (mulberry32)
  let a = seed * 2654435761 >>> 0
  return () => {
    a = a + 0x6D2B79F5 | 0
    let t = Math.imul(a ^ a >>> 15, 1 | a)
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t
    return ((t ^ t >>> 14) >>> 0) / 4294967296
  }
}

const median = list => {
  const s = [...list].sort((a, b) => a - b), n = s.length
  return (s[(n - 1) >> 1] + s[n >> 1]) / 2
}

export function ground(p, H, W) {                    // the colour around a picture: the median of its border
  const at = [], border = (r, c) => !r || !c || r === H - 1 || c === W - 1
  for (let r = 0; r < H; r++) for (let c = 0; c < W; c++) if (border(r, c)) at.push((r * W + c) * 3)
  return [0, 1, 2].map(k => median(at.map(i => p[i + k])))
}

export function silhouette(p, H, W) {                // two colours: what stands out from the ground, and the ground
  const g = ground(p, H, W), far = new Float32Array(H * W), out = new Float32Array(p.length), mean = [0, 0, 0]
  for (let i = 0; i < H * W; i++) far[i] = Math.hypot(p[3 * i] - g[0], p[3 * i + 1] - g[1], p[3 * i + 2] - g[2])
  const half = far.reduce((a, b) => Math.max(a, b), 0) / 2, figure = far.map(f => f > half ? 1 : 0)
  const n = Math.max(1, figure.reduce((a, b) => a + b, 0))
  for (let i = 0; i < H * W; i++) if (figure[i]) for (let k = 0; k < 3; k++) mean[k] += p[3 * i + k] / n
  for (let i = 0; i < H * W; i++) for (let k = 0; k < 3; k++) out[3 * i + k] = figure[i] ? mean[k] : g[k]
  return out
}

function placed(p, H, W, { dx, dy, turn, size }) {   // shifted, turned about its middle, scaled; new borders are ground
  const g = ground(p, H, W), out = new Float32Array(p.length), a = -turn * Math.PI / 180
  const c = Math.cos(a) / size, s = Math.sin(a) / size, my = (H - 1) / 2, mx = (W - 1) / 2
  const pixel = (y, x, k) => y < 0 || x < 0 || y >= H || x >= W ? g[k] : p[(y * W + x) * 3 + k]
  for (let r = 0; r < H; r++) for (let q = 0; q < W; q++) {
    const v = r - my - dy, u = q - mx - dx, y = my + v * c + u * s, x = mx + u * c - v * s
    const y0 = Math.floor(y + 1e-6), x0 = Math.floor(x + 1e-6), fy = Math.max(0, y - y0), fx = Math.max(0, x - x0)
    for (let k = 0; k < 3; k++) out[(r * W + q) * 3 + k] =
      (1 - fy) * ((1 - fx) * pixel(y0, x0, k) + (fx && fx * pixel(y0, x0 + 1, k))) +
      (fy && fy * ((1 - fx) * pixel(y0 + 1, x0, k) + (fx && fx * pixel(y0 + 1, x0 + 1, k))))
  }
  return out
}

function recoloured(p, { hue, colour }) {            // hues turn about grey, colours fade towards it
  const a = hue * Math.PI / 180, c = Math.cos(a), s = Math.sin(a), out = new Float32Array(p.length)
  for (let i = 0; i < p.length; i += 3) {
    const [r, g, b] = [p[i], p[i + 1], p[i + 2]], y = .299 * r + .587 * g + .114 * b
    const u = (r - y) * colour, v = (b - y) * colour, u1 = c * u - s * v, v1 = s * u + c * v
    out[i] = y + u1; out[i + 2] = y + v1; out[i + 1] = y - (.299 * u1 + .114 * v1) / .587
  }
  return out
}

export function shuffledPatches(p, H, W, grid, seed) {    // grid x grid patches in another order; a rest stays
  const h = Math.floor(H / grid), w = Math.floor(W / grid), next = dice(seed), out = p.slice()
  const order = [...Array(grid * grid).keys()], corner = i => Math.floor(i / grid) * h * W + i % grid * w
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1))
    ;[order[i], order[j]] = [order[j], order[i]]
  }
  order.forEach((from, to) => {
    for (let r = 0; r < h; r++) for (let c = 0; c < w * 3; c++) {
      out[(corner(to) + r * W) * 3 + c] = p[(corner(from) + r * W) * 3 + c]
    }
  })
  return out
}

function covered(p, H, W, share) {                   // a square in the middle, in the colour of the ground
  const g = ground(p, H, W), out = p.slice(), inside = (i, n) => Math.abs(i + .5 - n / 2) < share * n / 2
  for (let r = 0; r < H; r++) for (let c = 0; c < W; c++) if (inside(r, H) && inside(c, W)) out.set(g, (r * W + c) * 3)
  return out
}

function noisy(p, spread, seed) {                    // Gaussian, independent in every pixel and colour
  const next = dice(seed)
  return p.map(v => v + spread * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()))
}

export function edited(base, H, W, e) {              // all that `e` says, in this order
  let p = base
  if (e.silhouette) p = silhouette(p, H, W)
  if (e.dx || e.dy || e.turn || e.size !== 1) p = placed(p, H, W, e)
  if (e.hue || e.colour !== 1) p = recoloured(p, e)
  if (e.shuffle > 1) p = shuffledPatches(p, H, W, e.shuffle, e.seed)
  if (e.cover) p = covered(p, H, W, e.cover)
  if (e.noise) p = noisy(p, e.noise, e.seed)
  return p.map(v => Math.min(1, Math.max(0, v)))
}

export function dabbed(p, H, W, x, y, colour, round) {   // a dot of paint, `round` pixels wide; null paints ground
  const out = p.slice(), c = colour || ground(p, H, W), reach = (round - 1) / 2 + .3
  for (let r = 0; r < H; r++) for (let q = 0; q < W; q++) {
    if (Math.hypot(r - y, q - x) <= reach) out.set(c, (r * W + q) * 3)
  }
  return out
}
