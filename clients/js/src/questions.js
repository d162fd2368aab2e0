// Questions to `presence.query`, each asked until it is answered: few at a time, again
// after a while if no answer comes, and with every answer that isn't one skipped.
//
// A question waits for its own answer on an inbox of ours and not by `nc.request`, which
// takes whatever comes first: a JetStream stream over `presence.>` acknowledges questions
// too. It also has the answers come through a callback, in one order with the events.

const RETRY_MS = 100;
const RETRY_MS_MAX = 2_000;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/**
 * A question is an object that the asker makes:
 *   subject    where to ask
 *   viewer     who asks
 *   users      a list of ids, or "contacts"
 *   wanted()   whether the answer is still of use
 *   sent()     it is being sent, perhaps not for the first time
 *   answered(users)   the answer
 *   failed(error)     no answer; it will be asked again
 *   tooLarge()        the answer would be too large. It is not asked again.
 */
export class Questions {
  #nc;
  #options;
  #inbox;
  #subscription;
  #number = 0;
  #stopped = false;
  /** Whether the broker is connected, as far as it has been said. */
  #connected = true;
  /** To be sent, in this order. */
  #waiting = [];
  /** By their numbers: { question, timer, others }. */
  #underWay = new Map();
  /** While a question waits to be asked again: its timer. */
  #later = new Map();
  /** While nobody listens, no question is sent: the timer that ends it. */
  #pause;
  #pauses = 0;

  constructor(nc, { atATime, answerMs, inboxPrefix }) {
    this.#nc = nc;
    this.#options = { atATime, answerMs };
    const prefix = inboxPrefix ?? nc.options?.inboxPrefix ?? "_INBOX";
    const random = () => Math.random().toString(36).slice(2);
    this.#inbox = `${prefix}.${random()}${random()}`;
  }

  start() {
    const callback = (error, message) => {
      if (!error) this.#take(message);
    };
    this.#subscription = this.#nc.subscribe(`${this.#inbox}.*`, { callback });
  }

  stop() {
    this.#stopped = true;
    this.#subscription?.unsubscribe();
    clearTimeout(this.#pause);
    for (const { timer } of this.#underWay.values()) clearTimeout(timer);
    for (const timer of this.#later.values()) clearTimeout(timer);
    this.#waiting = [];
    this.#underWay.clear();
    this.#later.clear();
  }

  ask(question) {
    this.#waiting.push({ question, failures: 0 });
    this.#send();
  }

  /** The connection has gone, and with it the answers to what is under way. */
  disconnected() {
    this.#connected = false;
    for (const [number, asked] of this.#underWay) {
      clearTimeout(asked.timer);
      this.#underWay.delete(number);
      this.#waiting.unshift(asked);
    }
  }

  /** The connection is back, or there is another sign that somebody will answer. */
  wake(connected = this.#connected) {
    this.#connected = connected;
    clearTimeout(this.#pause);
    this.#pause = undefined;
    this.#pauses = 0;
    for (const [asked, timer] of this.#later) {
      clearTimeout(timer);
      this.#waiting.push(asked);
    }
    this.#later.clear();
    this.#send();
  }

  #send() {
    while (this.#isFree() && this.#waiting.length > 0) {
      const asked = this.#waiting.shift();
      const { question } = asked;
      if (!question.wanted()) continue;
      const number = String(this.#number++);
      const { answerMs } = this.#options;
      asked.others = 0;
      asked.timer = setTimeout(() => this.#fail(number, `no answer within ${answerMs} ms`), answerMs);
      this.#underWay.set(number, asked);
      question.sent();
      const body = JSON.stringify({ viewerId: question.viewer, userIds: question.users });
      try {
        this.#nc.publish(question.subject, encoder.encode(body), { reply: `${this.#inbox}.${number}` });
      } catch (error) {
        this.#fail(number, error.message);
      }
    }
  }

  #isFree() {
    const free = this.#underWay.size < this.#options.atATime;
    return free && this.#connected && this.#pause === undefined && !this.#stopped;
  }

  #take(message) {
    const number = message.subject.slice(this.#inbox.length + 1);
    const asked = this.#underWay.get(number);
    if (asked === undefined) return; // Its time was up: it is asked again.
    if (message.headers?.code === 503) {
      this.#nobodyListens(number);
      return;
    }
    const answer = readAnswer(message, asked.question);
    if (answer === undefined) {
      asked.others += 1;
    } else if (answer.users !== undefined) {
      this.#end(number);
      asked.question.answered(answer.users);
      this.#pauses = 0;
    } else if (answer.reason === "too-large") {
      this.#end(number);
      asked.question.tooLarge();
    } else {
      this.#fail(number, `${answer.reason}: ${answer.error}`);
    }
    this.#send();
  }

  #end(number) {
    const asked = this.#underWay.get(number);
    clearTimeout(asked.timer);
    this.#underWay.delete(number);
    return asked;
  }

  /** There was no answer, or one that may be another later. */
  #fail(number, why) {
    const asked = this.#end(number);
    const wait = backOff(asked.failures++);
    const again = () => {
      this.#later.delete(asked);
      this.#waiting.push(asked);
      this.#send();
    };
    this.#later.set(asked, setTimeout(again, wait));
    const others = asked.others > 0 ? `, and ${asked.others} that are none (from a stream?)` : "";
    asked.question.failed(new Error(`${asked.question.subject}: ${why}${others}`));
    this.#send();
  }

  /** The broker says so of one question, and it is so of all: they wait together. */
  #nobodyListens(number) {
    const asked = this.#end(number);
    this.#waiting.unshift(asked);
    if (this.#pause !== undefined) return;
    this.#pause = setTimeout(() => {
      this.#pause = undefined;
      this.#send();
    }, backOff(this.#pauses++));
    asked.question.failed(new Error(`${asked.question.subject}: nobody answers`));
  }
}

/** How long to wait after so many failures: longer each time, and never all alike. */
function backOff(failures) {
  const longest = Math.min(RETRY_MS * 2 ** failures, RETRY_MS_MAX);
  return longest * (0.5 + Math.random() / 2);
}

/** An answer to this question, `{ users }` or `{ reason, error }`; undefined if it is none. */
function readAnswer(message, { viewer, users }) {
  let body;
  try {
    body = JSON.parse(decoder.decode(message.data));
  } catch {
    return undefined;
  }
  if (body?.ok === false && typeof body.reason === "string") return body;
  if (body?.viewerId !== viewer || !Array.isArray(body.users)) return undefined;
  if (Array.isArray(users) && body.users.length !== users.length) return undefined;
  return body;
}
