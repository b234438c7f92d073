import { describe, expect, it } from 'vitest';
import { LinearRegex, matchBudget } from '../../lib/checkpoint/linear-regex.js';
import { codeOf } from './raw-file.js';

/** Patterns whose meaning is the same in Python and JavaScript, against JavaScript's own matcher. */
const kPatterns = [
  '',
  'a',
  'abc',
  'a|b|',
  '.*',
  '.+x',
  'a*b+c?',
  'a{3}',
  'a{2,}',
  'a{0,2}b',
  'a{,x}',
  'a{b',
  '(ab)*',
  '(a|b)*c',
  '(?:a|bc)+?d',
  '(a*)*',
  '(a*)+b',
  '(|a)+',
  '[abc]+',
  '[^abc]+',
  '[a-c-]+',
  '[]a]'.replace(']a', '\\]a'),
  '[.*+]',
  '[\\d_]+x',
  '\\d+\\.\\d+',
  '\\w+\\s\\w+',
  '\\D\\W\\S',
  '\\.\\*\\\\',
  '\\x41\\u0042',
  '^ab$',
  'a^b',
  'a$b',
  '\\bab\\b',
  '.*\\bb',
  'a\\Bb',
  '.*\\.(q_proj|down_proj)|lm_head',
  '(.*\\.)?(q_proj)',
  'model\\.layers\\.(0|1|2)\\.(self_attn|mlp)\\.[a-z]+_proj',
  '((a{2}){2}){2}',
  '(a|ab)(c|bcd)(d*)',
];

const kTexts = [
  '',
  'a',
  'b',
  'c',
  'aa',
  'aaa',
  'aaaa',
  'aaaaaaaa',
  'ab',
  'abc',
  'abab',
  'ababc',
  'abcd',
  'bcd',
  'aab',
  'abb',
  'aabbc',
  'a b',
  '3.14',
  '12',
  'a-c',
  '.',
  '*',
  '\\',
  '.*\\',
  'AB',
  ']',
  '_1x',
  '-',
  'é',
  'a\nb',
  '\n',
  'lm_head',
  'model.layers.0.self_attn.q_proj',
  'model.layers.1.mlp.down_proj',
  'model.layers.10.mlp.down_proj',
  'q_proj',
  'xq_proj',
  'a{,x}',
  'a{b',
  '!!',
  'x x',
  '\u{1f600}',
];

describe('LinearRegex', () => {
  it.each(kPatterns)('matches as a backtracking matcher does: %j', (pattern) => {
    const ours = new LinearRegex('test', pattern);
    const theirs = new RegExp(
      `^(?:${pattern.replace('{,x}', '\\{,x\\}')})$`,
      pattern.includes('{b') ? '' : 'u',
    );
    for (const text of kTexts)
      expect([text, ours.fullMatch(text)]).toEqual([text, theirs.test(text)]);
  });

  it('follows Python where JavaScript differs', () => {
    const match = (pattern: string, text: string) =>
      new LinearRegex('test', pattern).fullMatch(text);
    expect(match('a{,2}', 'aa')).toBe(true);
    expect(match('a{,2}', 'a{,2}')).toBe(false);
    expect(match('[]a]+', ']a')).toBe(true);
    expect(match('[^]a]', 'b')).toBe(true);
    expect(match('\\Aab\\Z', 'ab')).toBe(true);
    expect(match('(?P<name>ab)', 'ab')).toBe(true);
    expect(match('\\w+', 'größe_1')).toBe(true);
    expect(match('\\d', '\u0663')).toBe(true);
    expect(match('.', '\u{1f600}')).toBe(true);
    expect(match('a$\\n', 'a\n')).toBe(true);
    expect(match('\\U0001F600', '\u{1f600}')).toBe(true);
    expect(match('\\_\\-\\/', '_-/')).toBe(true);
    expect(match('[\\b]', '\b')).toBe(true);
  });

  it.each([
    '(a+)+$',
    '(a|a)*b',
    '(a|aa)+$',
    '(.*)*x',
    '(.*a){20}',
    '([a-z]+)*1',
    '(a*)*(a*)*b',
    '^(\\w+\\s?)*$',
    '(x+x+)+y',
    '(.*)(.*)(.*)(.*)(.*)(.*)(.*)z',
    '((a?){30})a{30}',
    'a?'.repeat(30) + 'a'.repeat(30),
    '(a{1,30}){1,30}b',
    '(?:a|b|ab)*c',
    '(.|\\s)*x',
  ])('is linear on %j', (pattern) => {
    const regex = new LinearRegex('test', pattern);
    const start = performance.now();
    regex.fullMatch(`${'a'.repeat(200)}!`);
    regex.fullMatch('ab '.repeat(60));
    expect(performance.now() - start).toBeLessThan(500);
  });

  it.each([
    '(?=a)',
    '(?!a)',
    '(?<=a)b',
    '(?<!a)b',
    '(a)\\1',
    '(?P<n>a)(?P=n)',
    '(?i)a',
    '(?s:.)',
    '(?>a)',
    'a*+',
    'a++',
    '(?#comment)',
    '(?(1)a|b)',
    'a{1001}',
    'a{5,2000}',
    '(a{1000}){1000}',
    '(((){1000}){1000}){1000}',
    '('.repeat(200) + ')'.repeat(200),
    'a'.repeat(10_001),
    '(((a{9}){9}){9}){99}',
  ])('refuses as unsupported: %j', (pattern) => {
    const start = performance.now();
    expect(codeOf(() => new LinearRegex('test', pattern))).toBe('ERR_UNSUPPORTED');
    expect(performance.now() - start).toBeLessThan(1000);
  });

  it.each([
    '(',
    ')',
    'a)',
    '(a',
    '[',
    '[a',
    '[^',
    '*a',
    '+',
    '?',
    'a**',
    'a{2}{3}',
    'a{3,2}',
    '[z-a]',
    '[\\d-z]',
    '\\',
    '\\q',
    '\\x1',
    '\\u12',
    '(?',
    '(?P',
    '(?<n>a)',
    '^*',
    '[a-',
    '(?P<1>a)',
    '\\U00110000',
  ])('refuses as invalid: %j', (pattern) => {
    expect(codeOf(() => new LinearRegex('test', pattern))).toBe('ERR_FILE');
  });

  it('holds many patterns to one budget', () => {
    const budget = { ...matchBudget(), states: 5000 };
    const compile = () => {
      for (let i = 0; i < 100; i++) new LinearRegex('test', '(a{100}){1,2}', budget);
    };
    expect(codeOf(compile)).toBe('ERR_UNSUPPORTED');
    const steps = { ...matchBudget(), steps: 10_000 };
    const regex = new LinearRegex('test', '(a|b|ab)*c', steps);
    expect(
      codeOf(() => {
        for (let i = 0; i < 1000; i++) regex.fullMatch('ab'.repeat(50));
      }),
    ).toBe('ERR_UNSUPPORTED');
  });
});
