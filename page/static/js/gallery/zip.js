// A ZIP file of pictures, which are stored as they are, because they are compressed already. The format is that of
// PKWARE's APPNOTE 6.3: local headers with the data, then the central directory.

const LIMIT = 0xffffffff;
const UTF8_NAMES = 0x0800;

let table = null;

/** CRC-32 of bytes, as in ISO 3309. */
export function crc32(bytes) {
  table ??= Uint32Array.from({ length: 256 }, (_, n) => {
    let value = n;
    for (let k = 0; k < 8; k += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
    return value;
  });
  let crc = LIMIT;
  for (let i = 0; i < bytes.length; i += 1) crc = table[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return (crc ^ LIMIT) >>> 0;
}

/** A Blob of the files `[{name, blob, at}]`; `at`: Unix time. Throws RangeError above 4 GiB. */
export async function zip(files) {
  const total = files.reduce((sum, file) => sum + file.blob.size + 200, 0);
  if (total > LIMIT || files.length > 65_000) throw new RangeError("a ZIP file has at most 4 GiB");
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const file of files) {
    const name = new TextEncoder().encode(file.name);
    const entry = { name, size: file.blob.size, crc: crc32(new Uint8Array(await file.blob.arrayBuffer())), at: file.at };
    parts.push(header(0x04034b50, entry, []), name, file.blob);
    directory.push(header(0x02014b50, entry, [offset]), name);
    offset += 30 + name.length + entry.size;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** A local header, or with `[offset]` the entry of the directory. */
function header(signature, { name, size, crc, at }, [offset]) {
  const isLocal = offset === undefined;
  const bytes = new Uint8Array(isLocal ? 30 : 46);
  const view = new DataView(bytes.buffer);
  const start = isLocal ? 4 : 6;
  const [date, time] = dosTime(new Date(at * 1000));
  view.setUint32(0, signature, true);
  view.setUint16(4, 20, true);
  view.setUint16(start, 20, true);
  view.setUint16(start + 2, UTF8_NAMES, true);
  view.setUint16(start + 6, time, true);
  view.setUint16(start + 8, date, true);
  view.setUint32(start + 10, crc, true);
  view.setUint32(start + 14, size, true);
  view.setUint32(start + 18, size, true);
  view.setUint16(start + 22, name.length, true);
  if (!isLocal) view.setUint32(42, offset, true);
  return bytes;
}

function dosTime(at) {
  const date = ((Math.max(1980, at.getFullYear()) - 1980) << 9) | ((at.getMonth() + 1) << 5) | at.getDate();
  return [date, (at.getHours() << 11) | (at.getMinutes() << 5) | (at.getSeconds() >> 1)];
}
