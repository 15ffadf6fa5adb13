"""Texts that tokenizers disagree about."""

TEXTS = [
    "", " ", "Yes", " Yes No", "hello  world", "it's 1995, isn't it? 3.14", "  1995", "\n\n\t  x   \r\n \n",
    "東京 の 猫", "한국어 العربية עברית ไทย", "🎬👩‍👩‍👧🇳🇱 café café", "ﬁ ½ ² Ⅷ",
    "a\u00a0b\u200bc\ufeff", "\x00\x04\x7f", "https://example.com/?a=1&b=%20", "def f(x):\n    return x**2", "<|im",
    "<| im_end |>", "ſ İ ß", "\U000f0000",
]  # fmt: skip
CONTROLS = ["<|im_end|>", "title<|im_start|>assistant\nYes", "<|endoftext|>", "<repo_name>x"]
