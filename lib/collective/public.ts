/** What the library exports of processes that compute together. */

export { type Collective, CollectiveError, type CollectiveReason } from './collective.js';
export { joinWorld, type WorldOptions } from './join.js';
export { TreeSum, treeSum } from './tree-sum.js';
