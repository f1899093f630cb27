// The entry for require(): the same modules as import gives, not a second copy of them, so Node must be able to require ES modules (20.19,
// 22.12 or newer). A file of its own because TypeScript takes the types of require() from CommonJS only.
import api = require('./index.js');
export = api;
