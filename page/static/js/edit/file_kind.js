// What a file is, from its first bytes: never from its name. The formats are those that the API accepts, and those that
// people try although it does not.

export const ACCEPTED = new Set(["png", "jpeg", "webp", "gif", "bmp", "avif"]);

const HEIC_BRANDS = new Set(["heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1", "msf1"]);
const AVIF_BRANDS = new Set(["avif", "avis"]);

/** Bytes that `fileKind` needs to see: the markers that matter are near the start, except a GIF's second frame. */
export const HEAD_BYTES = 1 << 18;

/**
 * {kind, animated}. `kind`: one of ACCEPTED, "heic", "tiff", "svg", "pdf", "video" or "unknown". `animated`: whether the
 * file has several frames; a GIF whose second frame lies beyond `bytes` counts as one if its head says that it repeats.
 */
export function fileKind(bytes) {
  const kind = kindOf(bytes);
  return { kind, animated: isAnimated(kind, bytes) };
}

function kindOf(bytes) {
  if (startsWith(bytes, [0x89, 0x50, 0x4e, 0x47])) return "png";
  if (startsWith(bytes, [0xff, 0xd8, 0xff])) return "jpeg";
  if (ascii(bytes, 0, 4) === "GIF8") return "gif";
  if (ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 12) === "WEBP") return "webp";
  if (ascii(bytes, 0, 2) === "BM" && bytes.length > 26) return "bmp";
  if (ascii(bytes, 4, 8) === "ftyp") return kindOfBox(bytes);
  if (["II*\0", "MM\0*"].includes(ascii(bytes, 0, 4))) return "tiff";
  if (ascii(bytes, 0, 4) === "%PDF") return "pdf";
  if (startsWith(bytes, [0x1a, 0x45, 0xdf, 0xa3])) return "video";
  return /^\uFEFF?\s*(<\?xml[^]*)?<svg/i.test(new TextDecoder().decode(bytes.subarray(0, 1024))) ? "svg" : "unknown";
}

/** The brands of an ISO media file: the major one at byte 8, the compatible ones from byte 16 to the end of the box. */
function kindOfBox(bytes) {
  const end = Math.min(bytes.length, Math.max(16, new DataView(bytes.buffer, bytes.byteOffset).getUint32(0)), 256);
  const brands = [ascii(bytes, 8, 12)];
  for (let at = 16; at + 4 <= end; at += 4) brands.push(ascii(bytes, at, at + 4));
  if (brands.some((brand) => AVIF_BRANDS.has(brand))) return "avif";
  return brands.some((brand) => HEIC_BRANDS.has(brand)) ? "heic" : "video";
}

function isAnimated(kind, bytes) {
  if (kind === "gif") return hasSecondFrame(bytes);
  // The flags of the extended WebP header: bit 1 is "animation".
  if (kind === "webp") return ascii(bytes, 12, 16) === "VP8X" && (bytes[20] & 2) !== 0;
  if (kind === "png") return hasChunkBeforePixels(bytes, "acTL");
  return kind === "avif" && ascii(bytes, 8, 12) === "avis";
}

function hasChunkBeforePixels(bytes, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 8 <= bytes.length; at += 12 + view.getUint32(at)) {
    const chunk = ascii(bytes, at + 4, at + 8);
    if (chunk === name) return true;
    if (chunk === "IDAT") return false;
  }
  return false;
}

/** Walks the blocks of a GIF: header, extensions, and images with their colour tables and data. */
function hasSecondFrame(bytes) {
  let at = 13 + colourTable(bytes[10]);
  let frames = 0;
  let repeats = false;
  while (at < bytes.length) {
    const block = bytes[at];
    if (block === 0x3b) return false;
    if (block === 0x21) {
      repeats ||= ascii(bytes, at + 3, at + 14) === "NETSCAPE2.0";
      at = afterData(bytes, at + 2);
    } else if (block === 0x2c) {
      frames += 1;
      if (frames === 2) return true;
      at = afterData(bytes, at + 11 + colourTable(bytes[at + 9]));
    } else {
      return false;
    }
  }
  return repeats;
}

function colourTable(flags) {
  return flags & 0x80 ? 3 * (2 << (flags & 7)) : 0;
}

function afterData(bytes, at) {
  while (at < bytes.length && bytes[at] !== 0) at += bytes[at] + 1;
  return at + 1;
}

function startsWith(bytes, signature) {
  return signature.every((byte, index) => bytes[index] === byte);
}

function ascii(bytes, from, to) {
  return String.fromCharCode(...bytes.subarray(from, to));
}
