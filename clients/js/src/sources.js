// What has been heard of each source: its epoch, and the last sequence number on each
// subject. This is the half of the client's rule that notices a loss; it does no I/O.
//
// A source is a worker of a node or, in a fleet, a shard. It numbers what it publishes on each
// subject 1, 2, 3 … without gaps, and begins anew with a later epoch when it starts, or when
// another node owns the shard. What an earlier owner still says is of an earlier epoch.

/** How many sources are remembered. One that was forgotten is taken for a new one. */
const SOURCES_MAX = 1024;

/** Reads `Presence-Seq: <source> <epoch> <seq>`; undefined if it isn't that. */
export function readHeader(text) {
  const [, source, epoch, seq] = /^(\S+) (\d+) (\d+)$/.exec(text ?? "") ?? [];
  if (source === undefined) return undefined;
  return { source, epoch: Number(epoch), seq: Number(seq) };
}

export class Sources {
  /** By its name: { epoch, seqs: Map of subject to last number }. */
  #sources = new Map();

  /**
   * Notes a message. Says what it is:
   * - "next": what was to come next on this subject;
   * - "new": the first of a source, or of a later epoch of it;
   * - "gap": some before it are missing;
   * - "old": said before, or by an epoch that has ended. It says nothing new: to be ignored.
   */
  hear(subject, { source, epoch, seq }) {
    const known = this.#sources.get(source);
    if (known === undefined || epoch > known.epoch) {
      this.#begin(source, epoch, new Map([[subject, seq]]));
      return "new";
    }
    const last = known.seqs.get(subject) ?? 0;
    if (epoch < known.epoch || seq <= last) return "old";
    known.seqs.set(subject, seq);
    return seq === last + 1 ? "next" : "gap";
  }

  /**
   * Notes a beacon, which tells the last number on each subject. Says "new" as above,
   * "gap" if the last messages on a subject that `listens` accepts are missing, or else
   * "next".
   */
  hearBeacon({ source, epoch, seqs }, listens) {
    const ours = Object.entries(seqs).filter(([subject]) => listens(subject));
    const known = this.#sources.get(source);
    if (known === undefined || epoch > known.epoch) {
      this.#begin(source, epoch, new Map(ours));
      return "new";
    }
    if (epoch < known.epoch) return "next";
    let found = "next";
    for (const [subject, seq] of ours) {
      if (seq > (known.seqs.get(subject) ?? 0)) {
        known.seqs.set(subject, seq);
        found = "gap";
      }
    }
    return found;
  }

  #begin(source, epoch, seqs) {
    this.#sources.delete(source);
    this.#sources.set(source, { epoch, seqs });
    if (this.#sources.size > SOURCES_MAX) {
      this.#sources.delete(this.#sources.keys().next().value);
    }
  }
}
