"""What training reads: every text that is tokenised, and every label that is encoded."""

from transformers import PreTrainedTokenizerBase

from zsseg import ConcatProcessor


def listen_to_texts(monkeypatch, note=lambda: None):
    """A list that fills with (text, note()) from now on: label names as encoded, prompts as tokenised."""
    heard = []
    encode, tokenize = ConcatProcessor.encode_labels, PreTrainedTokenizerBase.__call__

    def encode_and_note(self, candidate_labels, **options):
        heard.extend((text, note()) for category in candidate_labels for text in category.texts)
        return encode(self, candidate_labels, **options)

    def tokenize_and_note(self, text, *arguments, **options):
        heard.extend((each, note()) for each in ([text] if isinstance(text, str) else text))
        return tokenize(self, text, *arguments, **options)

    monkeypatch.setattr(ConcatProcessor, "encode_labels", encode_and_note)
    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", tokenize_and_note)
    return heard


def mentions(heard, names):
    """Those of them that hold one of these names."""
    return [(text, note) for text, note in heard if any(name in text for name in names)]
