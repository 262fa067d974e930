// Small networks in the page: the graph and the half-precision weights that `libkd.playground.pack_net` writes.
// Maps are (height, width, channels), channels last; tokens are (1, N, D), vectors (1, 1, C). Nothing is imported.

let halfValues                                       // every half-precision number, decoded once
function fromHalf(buffer) {
  halfValues ??= Float32Array.from({ length: 65536 }, (_, h) => {
    const sign = h >> 15 ? -1 : 1, exponent = (h >> 10) & 31, part = h & 1023
    if (exponent === 31) return part ? NaN : sign * Infinity
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + part / 1024) : 2 ** -24 * part)
  })
  return Float32Array.from(new Uint16Array(buffer), h => halfValues[h])
}

function fromBase64(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer }

function readTensors(net) {                          // [{ shape, at, half }] and their bytes -> Float32Arrays
  const bytes = typeof net.weights === 'string' ? fromBase64(net.weights) : net.weights
  return net.tensors.map(({ shape, at, half }) => {
    const n = shape.reduce((a, b) => a * b, 1)
    return half ? fromHalf(bytes.slice(at, at + 2 * n)) : new Float32Array(bytes.slice(at, at + 4 * n))
  })
}

// ---- arithmetic ----

// Y (n, m) = X (n, k) W (m, k)^T + b; Y has rows of `wide` numbers and the result begins at column `from`
function times(X, n, k, W, m, b, Y, wide = m, from = 0) {
  if (LANES) inLanes(X, n, k, W, m, b, Y, wide, from)
  else inNumbers(X, n, k, W, m, b, Y, wide, from)
}

function inNumbers(X, n, k, W, m, b, Y, wide, from) { // in a browser that multiplies one number at a time
  const n4 = n & ~3, m4 = m & ~3
  for (let r = 0; r < n4; r += 4) {
    const x0 = r * k, x1 = x0 + k, x2 = x1 + k, x3 = x2 + k, y = r * wide + from
    for (let c = 0; c < m4; c += 4) fourByFour(X, x0, x1, x2, x3, W, c * k, k, b, c, Y, y + c, wide)
  }
  for (let r = 0; r < n; r++) for (let c = r < n4 ? m4 : 0; c < m; c++) {       // what is left at the edges
    let s = b ? b[c] : 0
    for (let i = 0, x = r * k, w = c * k; i < k; i++) s += X[x + i] * W[w + i]
    Y[r * wide + from + c] = s
  }
}

function fourByFour(X, x0, x1, x2, x3, W, w0, k, b, c, Y, y, wide) {             // sixteen sums at a time
  const w1 = w0 + k, w2 = w1 + k, w3 = w2 + k
  let a00 = 0, a01 = 0, a02 = 0, a03 = 0, a10 = 0, a11 = 0, a12 = 0, a13 = 0
  let a20 = 0, a21 = 0, a22 = 0, a23 = 0, a30 = 0, a31 = 0, a32 = 0, a33 = 0
  for (let i = 0; i < k; i++) {
    const u = W[w0 + i], v = W[w1 + i], w = W[w2 + i], z = W[w3 + i]
    const p = X[x0 + i], q = X[x1 + i], r = X[x2 + i], s = X[x3 + i]
    a00 += p * u; a01 += p * v; a02 += p * w; a03 += p * z
    a10 += q * u; a11 += q * v; a12 += q * w; a13 += q * z
    a20 += r * u; a21 += r * v; a22 += r * w; a23 += r * z
    a30 += s * u; a31 += s * v; a32 += s * w; a33 += s * z
  }
  const b0 = b ? b[c] : 0, b1 = b ? b[c + 1] : 0, b2 = b ? b[c + 2] : 0, b3 = b ? b[c + 3] : 0
  Y[y] = a00 + b0; Y[y + 1] = a01 + b1; Y[y + 2] = a02 + b2; Y[y + 3] = a03 + b3; y += wide
  Y[y] = a10 + b0; Y[y + 1] = a11 + b1; Y[y + 2] = a12 + b2; Y[y + 3] = a13 + b3; y += wide
  Y[y] = a20 + b0; Y[y + 1] = a21 + b1; Y[y + 2] = a22 + b2; Y[y + 3] = a23 + b3; y += wide
  Y[y] = a30 + b0; Y[y + 1] = a31 + b1; Y[y + 2] = a32 + b2; Y[y + 3] = a33 + b3
}

// ---- the same in lanes: a loop of WebAssembly that multiplies four numbers at a time ----

// Y (n, m) = X (n, k) W (m, k)^T, float32 in one memory. x, w, y: the first byte of each; n: rows, a multiple of 4;
// m: columns, of 2; k: bytes of a row, of 16. The innermost loop adds to 4 × 2 sums of four lanes each.
const INTEGERS = ['x', 'w', 'y', 'n', 'm', 'k', 'columns', 'left', 'row', 'from', 'column', 'to']
const SUMS = ['s00', 's01', 's10', 's11', 's20', 's21', 's30', 's31'], VECTORS = ['a', 'b', 'c', ...SUMS]
const spelled = (list, text) => list.map(text).join(' ')
const DOTS = `loop
  get w set column get m set columns
  loop
    ${spelled(SUMS, s => `zero set ${s}`)} get x set from get k set left
    loop
      get column load set a get column get k add load set b get from set row
      ${spelled([0, 1, 2, 3], r => `get row load set c get row get k add set row
        get s${r}0 get c get a times plus set s${r}0 get s${r}1 get c get b times plus set s${r}1`)}
      get from int 16 add set from get column int 16 add set column get left int 16 subtract tee left again
    end
    get y set to
    ${spelled(SUMS, (s, i) => `get to get ${s} lane 0 get ${s} lane 1 sum get ${s} lane 2 sum get ${s} lane 3 sum
      store 2 ${i % 2 ? '4 get to get m int 4 multiply add set to' : '0'}`)}
    get column get k add set column get y int 8 add set y get columns int 2 subtract tee columns again
  end
  get x get k int 4 multiply add set x get y get m int 12 multiply add set y get n int 4 subtract tee n again
end`
// Our words and the standard's bytes: times, plus and lane are f32x4.mul, f32x4.add and f32x4.extract_lane, again is br_if 0
const CODES = { loop: [3, 64], end: [11], again: [13, 0], get: [32], set: [33], tee: [34], int: [65], store: [56],
  add: [106], subtract: [107], multiply: [108], sum: [146], load: [253, 0, 4, 0], zero: [253, 12, ...Array(16).fill(0)],
  times: [253, 230, 1], plus: [253, 228, 1], lane: [253, 31] }

function assembled() {                               // the bytes of a module whose one function is DOTS
  const names = [...INTEGERS, ...VECTORS], named = word => names.includes(word) ? names.indexOf(word) : Number(word)
  const code = DOTS.trim().split(/\s+/).flatMap(word => CODES[word] ?? named(word))
  const counted = bytes => bytes.length < 128 ? [bytes.length, ...bytes]
    : [bytes.length & 127 | 128, bytes.length >> 7, ...bytes]
  const text = word => counted([...word].map(c => c.charCodeAt(0))), section = (id, ...bytes) => [id, ...counted(bytes)]
  const integer = 127, vector = 123, type = [96, 6, ...Array(6).fill(integer), 0]
  const body = counted([2, INTEGERS.length - 6, integer, VECTORS.length, vector, ...code, 11])
  return Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, ...section(1, 1, ...type),
    ...section(2, 1, ...text('page'), ...text('memory'), 2, 0, 1), ...section(3, 1, 0),
    ...section(7, 1, ...text('dots'), 0, 0), ...section(10, 1, ...body)])
}

function lanes() {                                   // null where a browser, or the rules of a page, know no such thing
  try {
    const memory = new WebAssembly.Memory({ initial: 1 }), module = new WebAssembly.Module(assembled())
    return { memory, dots: new WebAssembly.Instance(module, { page: { memory } }).exports.dots }
  } catch { return null }
}
const LANES = lanes()

function inLanes(X, n, k, W, m, b, Y, wide, from) {
  const rows = n + 3 & ~3, columns = m + 1 & ~1, long = k + 3 & ~3, { memory, dots } = LANES
  const w = rows * long, y = w + columns * long, missing = 4 * (y + rows * columns) - memory.buffer.byteLength
  if (missing > 0) memory.grow(Math.ceil(missing / 65536))
  const all = new Float32Array(memory.buffer)
  lay(X, n, k, all, 0, long); lay(W, m, k, all, w, long)
  dots(0, 4 * w, 4 * y, rows, columns, 4 * long)
  for (let r = 0; r < n; r++) for (let c = 0, i = y + r * columns, o = r * wide + from; c < m; c++, i++, o++)
    Y[o] = b ? all[i] + b[c] : all[i]
}

function lay(X, n, k, all, at, long) {               // n rows of k numbers, each filled up with zeros
  if (k === long) return all.set(X.subarray(0, n * k), at)
  for (let r = 0; r < n; r++, at += long) {
    for (let i = 0; i < k; i++) all[at + i] = X[r * k + i]
    all.fill(0, at + k, at + long)
  }
}

function erf(x) {                                    // Abramowitz and Stegun 7.1.26, error below 1.5e-7
  const t = 1 / (1 + .3275911 * Math.abs(x))
  const p = (((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - .284496736) * t + .254829592
  const y = 1 - p * t * Math.exp(-x * x)
  return x < 0 ? -y : y
}

function tabled(f) {                                 // from -8 to 8 on straight lines between 4,097 points: error below 2e-6
  const points = Float64Array.from({ length: 4097 }, (_, i) => f(i / 256 - 8))
  return x => {
    const at = 256 * (x + 8), i = at | 0
    return at >= 0 && at < 4096 ? points[i] + (at - i) * (points[i + 1] - points[i]) : f(x)
  }
}

const CURVES = {
  relu: x => x > 0 ? x : 0,
  gelu: tabled(x => .5 * x * (1 + erf(x * Math.SQRT1_2))),
  gelu_tanh: tabled(x => .5 * x * (1 + Math.tanh(.7978845608028654 * (x + .044715 * x * x * x)))),
  silu: tabled(x => x / (1 + Math.exp(-x))),
}

// The pixels below each place of the result, one row a place: (places, kh kw channels); outside is zero
function under(x, [H, W, C], o, [h, w], from, channels, P) {
  const [kh, kw] = o.kernel, [sy, sx] = o.stride, [py, px] = o.pad, [dy, dx] = o.dilation
  let at = 0
  for (let y = 0; y < h; y++) for (let z = 0; z < w; z++) for (let t = 0; t < kh * kw; t++) {
    const i = Math.floor(t / kw), j = t % kw, r = y * sy - py + i * dy, c = z * sx - px + j * dx
    const inside = r >= 0 && r < H && c >= 0 && c < W
    const source = (r * W + c) * C + from
    for (let k = 0; k < channels; k++) P[at + k] = inside ? x[source + k] : 0
    at += channels
  }
}

// One head of (N, wide): its queries, already scaled, its keys, and its values with the tokens behind each other
function split(x, N, wide, A, from, d, q, k, v) {
  const scale = 1 / Math.sqrt(d)
  for (let i = 0; i < N; i++) for (let c = 0, at = i * wide + from; c < d; c++, at++) {
    q[i * d + c] = x[at] * scale; k[i * d + c] = x[at + A]; v[c * N + i] = x[at + 2 * A]
  }
}

function share(row) {                                // softmax, in place
  let top = -Infinity, sum = 0
  for (let j = 0; j < row.length; j++) if (row[j] > top) top = row[j]
  for (let j = 0; j < row.length; j++) sum += row[j] = Math.exp(row[j] - top)
  for (let j = 0; j < row.length; j++) row[j] /= sum
}

const places = (n, kernel, stride, pad, dilation = 1) =>
  Math.floor((n + 2 * pad - dilation * (kernel - 1) - 1) / stride) + 1

// ---- operators: from an operation, the shapes that come in and the tensors to { shape, macs, run(inputs, result) }

const OPERATORS = {
  scale(o, [shape], t) {                             // batch norm without a convolution; normalised pixels
    const s = t[o.scale], b = t[o.shift], C = shape[2]
    return { shape, run([x], y) { for (let i = 0; i < y.length; i++) y[i] = x[i] * s[i % C] + b[i % C] } }
  },

  conv(o, [[H, W, C]], t) {
    const [kh, kw] = o.kernel, g = o.groups, cin = C / g, out = o.out, m = out / g, k = kh * kw * cin
    const weight = t[o.weight], bias = o.bias < 0 ? null : t[o.bias]
    const [h, w] = [[H, kh], [W, kw]].map(([n, side], i) => places(n, side, o.stride[i], o.pad[i], o.dilation[i]))
    const direct = g === 1 && kh * kw === 1 && o.stride[0] * o.stride[1] === 1 && o.pad[0] + o.pad[1] === 0
    const P = direct ? null : new Float32Array(h * w * k)
    return { shape: [h, w, out], macs: h * w * out * k, run([x], y) {
      for (let i = 0; i < g; i++) {
        if (P) under(x, [H, W, C], o, [h, w], i * cin, cin, P)
        const own = weight.subarray(i * m * k, (i + 1) * m * k), shift = bias && bias.subarray(i * m, (i + 1) * m)
        times(P || x, h * w, k, own, m, shift, y, out, i * m)
      }
    } }
  },

  linear(o, [[h, w, C]], t) {
    const weight = t[o.weight], bias = o.bias < 0 ? null : t[o.bias]
    return { shape: [h, w, o.out], macs: h * w * C * o.out, run([x], y) { times(x, h * w, C, weight, o.out, bias, y) } }
  },

  layernorm(o, [shape], t) {
    const D = shape[2], n = shape[0] * shape[1], s = t[o.scale], b = t[o.shift]
    return { shape, run([x], y) {
      for (let r = 0; r < n; r++) {
        let mean = 0, spread = 0
        for (let i = r * D; i < (r + 1) * D; i++) mean += x[i]
        mean /= D
        for (let i = r * D; i < (r + 1) * D; i++) spread += (x[i] - mean) ** 2
        const f = 1 / Math.sqrt(spread / D + o.eps)
        for (let i = 0; i < D; i++) y[r * D + i] = (x[r * D + i] - mean) * f * s[i] + b[i]
      }
    } }
  },

  act(o, [shape]) {
    const f = CURVES[o.curve]
    return { shape, run([x], y) { for (let i = 0; i < y.length; i++) y[i] = f(x[i]) } }
  },

  pool(o, [[H, W, C]]) {                             // average or maximum below a window
    const { kernel: k, stride, pad } = o, max = o.how === 'max', [h, w] = [H, W].map(n => places(n, k, stride, pad))
    return { shape: [h, w, C], run([x], y) {
      for (let r = 0; r < h; r++) for (let c = 0; c < w; c++) for (let q = 0; q < C; q++) {
        let s = max ? -Infinity : 0, n = 0
        for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) {
          const u = r * stride - pad + i, v = c * stride - pad + j
          if (u < 0 || u >= H || v < 0 || v >= W) continue
          const p = x[(u * W + v) * C + q]
          n++; s = max ? Math.max(s, p) : s + p
        }
        y[(r * w + c) * C + q] = max ? s : s / (o.padded ? k * k : n)
      }
    } }
  },

  mean(o, [[H, W, C]]) {                             // over all places
    const n = H * W
    return { shape: [1, 1, C], run([x], y) {
      y.fill(0)
      for (let i = 0; i < n * C; i++) y[i % C] += x[i]
      for (let q = 0; q < C; q++) y[q] /= n
    } }
  },

  involution(o, [[H, W, C], [h, w]]) {               // inputs: the map, and the kernels made for it, (h, w, groups K K)
    const { kernel: K, stride: s, groups: G } = o, cg = C / G, half = (K - 1) / 2
    return { shape: [h, w, C], macs: h * w * C * K * K, run([x, k], y) {
      y.fill(0)
      for (let r = 0; r < h; r++) for (let c = 0; c < w; c++) for (let i = 0; i < K; i++) {
        const u = r * s + i - half
        if (u < 0 || u >= H) continue
        for (let j = 0; j < K; j++) {
          const v = c * s + j - half
          if (v < 0 || v >= W) continue
          const at = (r * w + c) * C, from = (u * W + v) * C, weights = ((r * w + c) * G * K + i) * K + j
          for (let g = 0; g < G; g++) {
            const f = k[weights + g * K * K]
            for (let q = g * cg; q < (g + 1) * cg; q++) y[at + q] += f * x[from + q]
          }
        }
      }
    } }
  },

  add(o, [shape]) {
    return { shape, run([a, b], y) { for (let i = 0; i < y.length; i++) y[i] = a[i] + b[i] } }
  },

  tokens(o, [[h, w, D]], t) {                        // special tokens, then the patches, and positions for all
    const K = o.special.length, pos = t[o.positions]
    return { shape: [1, K + h * w, D], run([patches, ...made], y) {
      o.special.forEach((tensor, i) => y.set(tensor < 0 ? made[-1 - tensor] : t[tensor], i * D))
      y.set(patches, K * D)
      for (let i = 0; i < y.length; i++) y[i] += pos[i]
    } }
  },

  attention(o, [[, N, wide]], t) {                   // of rows (queries | keys | values), each head after head
    const H = o.heads, A = wide / 3, d = A / H, scores = o.scores < 0 ? null : t[o.scores]
    const q = new Float32Array(N * d), k = new Float32Array(N * d), v = new Float32Array(d * N), p = new Float32Array(N * N)
    return { shape: [1, N, A], macs: 2 * N * N * A, run([x], y) {
      for (let h = 0; h < H; h++) {
        split(x, N, wide, A, h * d, d, q, k, v)
        times(q, N, d, k, N, null, p)
        if (scores) for (let i = 0; i < N * N; i++) p[i] += scores[h * N * N + i]
        for (let i = 0; i < N; i++) share(p.subarray(i * N, (i + 1) * N))
        times(p, N, N, v, d, null, y, A, h * d)
      }
    } }
  },

  row(o, [[, , D]]) {
    return { shape: [1, 1, D], run([x], y) { y.set(x.subarray(o.row * D, (o.row + 1) * D)) } }
  },

  average(o, [shape]) {                              // of several answers
    return { shape, run(xs, y) { y.forEach((_, i) => { y[i] = xs.reduce((s, x) => s + x[i], 0) / xs.length }) } }
  },

  mean_probs(o, [shape]) {                           // the log of their mean probability
    return { shape, run(xs, y) {
      y.fill(0)
      for (const x of xs) {
        let top = -Infinity, sum = 0
        for (const v of x) if (v > top) top = v
        for (const v of x) sum += Math.exp(v - top)
        for (let i = 0; i < y.length; i++) y[i] += Math.exp(x[i] - top) / sum / xs.length
      }
      for (let i = 0; i < y.length; i++) y[i] = Math.log(y[i])
    } }
  },
}

// ---- a network ----

// `net` as `pack_net` writes it, its weights perhaps as an ArrayBuffer; { shape, classes, macs, run(pixels) }
export function network(net) {
  const tensors = readTensors(net), shapes = [net.input], buffers = [null], steps = []
  for (const o of net.ops) {
    if (!Object.hasOwn(OPERATORS, o.op)) throw new Error(`This page has no operator called ${o.op}.`)
    const step = OPERATORS[o.op](o, o.in.map(i => shapes[i]), tensors), [h, w, c] = step.shape
    shapes.push(step.shape); buffers.push(new Float32Array(h * w * c))
    steps.push({ ...step, in: o.in })
  }
  const heads = Object.entries(net.heads)
  return {
    shape: net.input, classes: net.classes, macs: steps.reduce((s, o) => s + (o.macs || 0), 0),
    run(pixels) {                                    // (H, W, 3), 0 to 1
      buffers[0] = pixels
      steps.forEach((step, i) => step.run(step.in.map(j => buffers[j]), buffers[i + 1]))
      const said = i => buffers[i].slice()
      return { answer: said(net.answer), heads: Object.fromEntries(heads.map(([name, i]) => [name, said(i)])) }
    },
  }
}
