/** What a check of settings refuses: the setting, what it must be, and what it is. */
export type RefusedSetting = readonly [setting: string, expected: string, actual: string];
