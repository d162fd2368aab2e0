// The few assertions that the scenarios need, in Node and in a browser alike.

export function equal(actual, expected, what = "") {
  const [is, should] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (is !== should) throw new Error(`${what} should be ${should}, but is ${is}`.trim());
}

export function ok(holds, what) {
  if (!holds) throw new Error(`it should be so: ${what}`);
}

/** Far longer than anything takes: it ends what hangs. */
const GUARD_MS = 30_000;

/** Waits until a condition holds. */
export async function until(what, holds) {
  const begin = Date.now();
  while (!(await holds())) {
    if (Date.now() - begin > GUARD_MS) throw new Error(`waited ${GUARD_MS} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
