// An id as one token of a NATS subject, as docs/use/permissions.md defines it.

const ID_BYTES_MAX = 256;

/**
 * The token that stands for an id: the id itself if it is of letters, digits, `_` and
 * `-` alone, else `=` and the base64url of its UTF-8, without padding.
 */
export function token(id) {
  checkId(id);
  if (/^[A-Za-z0-9_-]+$/.test(id)) return id;
  const bytes = String.fromCharCode(...new TextEncoder().encode(id));
  const base64 = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  return `=${base64}`;
}

/** Refuses what the host would refuse, where the mistake is made. */
export function checkId(id) {
  if (typeof id !== "string" || id === "") {
    throw new TypeError(`an id must be a string that isn't empty, not ${JSON.stringify(id)}`);
  }
  const bytes = new TextEncoder().encode(id).length;
  if (bytes > ID_BYTES_MAX) {
    throw new RangeError(`an id must be at most ${ID_BYTES_MAX} bytes long, not ${bytes}: ${id}`);
  }
  return id;
}
