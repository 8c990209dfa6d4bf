"""What Whisper writes where nobody speaks: credits of subtitles and thanks of videos, from what it was trained on.

The thresholds for segments are Whisper's own (`whisper.transcribe`: no_speech_threshold, logprob_threshold,
compression_ratio_threshold); the lines are those that its users report over and over.
"""
# ruff: noqa: RUF001 - lines as they are written in their languages

import re
import unicodedata

NO_SPEECH, LOG_PROBABILITY, COMPRESSION = 0.6, -1.0, 2.4
LITTLE_SPEECH = 0.3
"""Seconds of voice below which a phantom line is believed to be one: too few to say more than a syllable."""

_ANNOTATION = re.compile(r"[\[(（【<][^\[\]()（）【】<>]{0,60}[\])）】>]|\*[^*]{1,60}\*")
_CREDIT = re.compile(
    r"(sub-?titles?|captions?|captioning|subtitled|transcri(bed|ption)|translat(ed|ion)) (by|provided by) .{0,60}"
    r"|untertitel(ung)?( im auftrag| von| der|:).{0,60}|sous-?titr(es|age).{0,60}"
    r"|subt[ií]tulos (por|realizados|de).{0,60}"
    r"|leg?endas? (pela|por).{0,60}|sottotitoli (e revisione|creati|a cura|di).{0,60}|ondertitel(s|ing|d).{0,60}"
    r"|napisy (stworzone|przez|wykonał).{0,60}|субтитры .{0,60}|редактор субтитров.{0,60}|altyazı .{0,60}"
    r"|字幕(by|由|志愿者|製作|提供).{0,40}|.{0,40}amara ?org.{0,30}"
)
_LINES = frozenset({
    # English
    "you", "thank you", "thank you very much", "thank you so much", "thanks", "bye", "bye bye", "bye-bye", "the end",
    "thank you for watching", "thanks for watching", "thank you so much for watching", "thanks for watching this video",
    "thank you for watching this video", "please subscribe", "please subscribe to my channel", "like and subscribe",
    "dont forget to subscribe", "see you next time", "see you in the next video", "ill see you in the next video",
    # German
    "vielen dank", "vielen dank fürs zuschauen", "danke fürs zuschauen", "vielen dank für ihre aufmerksamkeit",
    "bis zum nächsten mal", "das wars für heute", "swr 2020", "zdf", "copyright wdr 2021",
    # French
    "merci davoir regardé cette vidéo", "merci davoir regardé", "merci", "abonnez-vous", "à bientôt",
    # Spanish, Portuguese, Italian
    "gracias", "gracias por ver el video", "gracias por ver", "suscríbete", "suscríbete al canal", "hasta la próxima",
    "obrigado", "obrigado por assistir", "obrigada por assistir", "inscrevase no canal", "tchau",
    "grazie", "grazie per la visione", "grazie per aver guardato il video", "iscrivetevi al canale",
    # Dutch, Polish, Turkish, Russian
    "bedankt voor het kijken", "tot de volgende keer", "dziękuję za uwagę", "dziękuję", "dzięki za oglądanie",
    "izlediğiniz için teşekkür ederim", "izlediğiniz için teşekkürler", "abone olmayı unutmayın",
    "продолжение следует", "спасибо за просмотр", "спасибо за внимание", "подписывайтесь на канал", "до новых встреч",
    # Chinese, Japanese, Korean, Arabic
    "谢谢观看", "谢谢", "感谢观看", "感谢收看", "多謝您的觀看", "謝謝觀看", "请不吝点赞订阅转发打赏支持明镜与点点栏目",
    "ご視聴ありがとうございました", "ご視聴ありがとうございます", "ありがとうございました",
    "おやすみなさい", "チャンネル登録お願いします",
    "감사합니다", "시청해주셔서 감사합니다", "시청해 주셔서 감사합니다",
    "구독과 좋아요 부탁드립니다", "mbc 뉴스 이덕영입니다",
    "شكرا", "شكرا للمشاهدة", "اشتركوا في القناة", "ترجمة نانسي قنقر",
})  # fmt: skip


def is_annotation(text: str) -> bool:
    """Whether it only names sounds, such as `[BLANK_AUDIO]`, `(silence)` or `♪ ♪`, or holds no words at all."""
    return len(text) < 200 and not any(map(str.isalnum, _ANNOTATION.sub("", text)))


def is_phantom(text: str) -> bool:
    """Whether it is one of the lines that Whisper is known to make up; one that people do say as well."""
    line = _plain(text)
    return line in _LINES or _CREDIT.fullmatch(line) is not None


def is_loop(text: str) -> bool:
    """Whether it is one phrase again and again, at least four times and to the end, but for a cut last time."""
    words = _plain(text).split()
    if len(words) <= 2:  # also of scripts that put no spaces between words
        words = list("".join(words))
    return any(words[length:] == words[:-length] for length in range(1, min(len(words) // 4, 40) + 1))


def is_silence(no_speech: float | None, log_probability: float | None) -> bool:
    """Whether a segment's own figures say that nobody spoke in it."""
    return (
        no_speech is not None
        and log_probability is not None
        and no_speech > NO_SPEECH
        and log_probability < LOG_PROBABILITY
    )


def _plain(text: str) -> str:
    """Lower case, without punctuation, one space between words."""
    kept = (char for char in text[:2000].lower() if not unicodedata.category(char).startswith("P") or char in "-:")
    return " ".join("".join(kept).replace("’", "").split())
