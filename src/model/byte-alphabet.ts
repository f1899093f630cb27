/** GPT-2's characters for bytes: printable ones stand for themselves, the others for U+0100 and up. */
export const byteAlphabet: readonly string[] = (() => {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const isPrintable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    return String.fromCharCode(isPrintable ? byte : next++);
  });
})();

const bytes = new Map(byteAlphabet.map((char, byte) => [char, byte]));

/** The text of such characters; bytes that are no UTF-8 become U+FFFD. */
export function decodeBytes(chars: string): string {
  return new TextDecoder().decode(Uint8Array.from(chars, (char) => bytes.get(char) ?? 0xff));
}

/** The characters of those bytes that UTF-8 has. */
export const utf8Alphabet: readonly string[] = byteAlphabet.filter(
  (_, byte) => byte < 0xf5 && byte !== 0xc0 && byte !== 0xc1,
);
