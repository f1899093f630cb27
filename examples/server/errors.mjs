// What a client is told: a status, a code and a message.
import { AlpsError } from 'alps-prune';

/** An error of the server itself; all others come from the library, with its codes. */
export class HttpError extends Error {
  constructor(status, code, message, headers = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.headers = headers;
  }
}

const statuses = {
  INVALID_ARGUMENT: 400,
  INVALID_CHECKPOINT: 400,
  UNSUPPORTED_MODEL: 422,
  INVALID_TEXT: 422,
  NOT_FINITE: 422,
  NOT_POSITIVE_DEFINITE: 422,
  OUT_OF_MEMORY: 413,
  ABORTED: 409,
  QUEUE_FULL: 429,
  DISPOSED: 503,
};

const hidden = [];

/** A folder of the server's that messages must not name. */
export function hide(folder) {
  hidden.push(folder);
}

/** Where messages name files, they do without the server's folders. */
export function responseOf(error) {
  if (error instanceof HttpError) {
    const { status, code, message, headers } = error;
    return { status, headers, body: { code, message } };
  }
  if (!(error instanceof AlpsError))
    return { status: 500, headers: {}, body: { code: 'INTERNAL', message: 'Internal error' } };
  const { code } = error;
  const status = statuses[code] ?? 500;
  const message = hidden.reduce((text, folder) => text.replaceAll(`${folder}/`, ''), error.message);
  return { status, headers: code === 'QUEUE_FULL' ? { 'retry-after': '5' } : {}, body: { code, message } };
}
