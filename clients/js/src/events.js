// What views and feeds dispatch, beside the plain events "doubted" and "synced".

/** Something that a viewer knows of a user has changed. */
export class PresenceChange extends Event {
  constructor(now, before) {
    super("change");
    this.userId = now.userId;
    this.now = now;
    this.before = before;
  }
}

/** Something went wrong. What the view does about it, it does by itself. */
export class PresenceError extends Event {
  constructor(error) {
    super("error");
    this.error = error;
  }
}
