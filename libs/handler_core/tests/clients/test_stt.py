"""Transcription: what is sent, what servers answer, and what of it nobody said."""

import email.policy
import json
from email.parser import BytesParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler_core.clients import phantoms
from handler_core.clients.body import Body, File
from handler_core.clients.failures import UpstreamError
from handler_core.clients.languages import code_of
from handler_core.clients.stt import STT, Segment, Transcription
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded

PATH = "/v1/audio/transcriptions"
WAV = b"RIFF\r\n--\0\xff" * 3
SAID = {"start": 0.0, "end": 1.5, "text": " What time is it?", "avg_logprob": -0.2, "compression_ratio": 1.1,
        "no_speech_prob": 0.01}  # fmt: skip
VERBOSE = {
    "task": "transcribe",
    "language": "english",
    "duration": 2.25,
    "text": " What time is it?",
    "segments": [SAID],
}


def fields(body: Body | bytes, content_type: str = "") -> dict[str, tuple[str | None, str | None, bytes]]:
    """A form's fields as another parser reads them: file name, content type and bytes of each."""
    data, kind = (body.data, body.content_type) if isinstance(body, Body) else (body, content_type)
    head = f"Content-Type: {kind}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + data)
    found = {}
    for part in message.iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        name = part.get_param("name", header="content-disposition")
        found[str(name)] = (part.get_filename(), part.get_content_type(), payload)
    return found


def sent(server: Any, number: int = -1) -> dict[str, bytes]:
    seen = server.seen[number]
    return {name: data for name, (_, _, data) in fields(seen.body, seen.headers["Content-Type"]).items()}


async def transcribe(stt: STT, **options: Any) -> Transcription:
    return await stt.transcribe(WAV, deadline=options.pop("deadline", Deadline.after(30)), **options)


# --- the request


async def test_a_file_and_its_options_are_sent_as_a_form(server, upstream):
    server.on(PATH, server.json(VERBOSE))
    await transcribe(STT(upstream, "whisper-1"), language="de", prompt="Grüße\r\nan Ann", temperature=0.0)
    seen = server.seen[0]
    form = fields(seen.body, seen.headers["Content-Type"])
    assert form["file"] == ("audio.wav", "audio/wav", WAV)
    assert {name: data.decode() for name, (_, _, data) in form.items() if name != "file"} == {
        "model": "whisper-1", "language": "de", "prompt": "Grüße\r\nan Ann", "temperature": "0.0",
        "response_format": "verbose_json",
    }  # fmt: skip


@pytest.mark.parametrize(("said", "sent_as"), [("de-AT", b"de"), ("zh-TW", b"zh"), ("pt_BR", b"pt"), ("yue", b"yue")])
async def test_a_language_is_sent_without_its_region(server, upstream, said, sent_as):
    server.on(PATH, server.json(VERBOSE))
    await transcribe(STT(upstream), language=said)
    assert sent(server)["language"] == sent_as
    await transcribe(STT(upstream, language=said))
    assert sent(server)["language"] == sent_as


async def test_what_is_not_known_is_not_sent_and_the_settings_language_counts_last(server, upstream):
    server.on(PATH, server.json(VERBOSE))
    await transcribe(STT(upstream))
    assert set(sent(server)) == {"file", "response_format"}
    stt = STT(upstream, language="fr")
    await transcribe(stt)
    assert sent(server)["language"] == b"fr"
    await transcribe(stt, language="it")
    assert sent(server)["language"] == b"it"


async def test_a_form_is_sent_again_whole_when_the_first_attempt_fails(server, upstream):
    server.on(PATH, server.json({}, 503), server.json(VERBOSE))
    assert (await transcribe(STT(upstream))).text == "What time is it?"
    assert [sent(server, n)["file"] for n in (0, 1)] == [WAV, WAV]


@given(st.dictionaries(st.sampled_from("abc"), st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
       st.binary(max_size=80))  # fmt: skip
def test_any_text_and_bytes_pass_through_a_form(values: dict[str, str], data: bytes) -> None:
    found = fields(Body.multipart({**values, "file": File("a.wav", "audio/wav", data)}))
    assert {name: item[2] for name, item in found.items()} == {
        **{name: value.encode() for name, value in values.items()}, "file": data,
    }  # fmt: skip


def test_names_cannot_forge_a_part_of_a_form() -> None:
    body = Body.multipart({'a"\r\nX: 1': File('b"; name="c\r\n', "audio/wav\r\nX: 2", b"")})
    assert b"\r\nX" not in body.data
    assert body.data.count(b'"') == 4


# --- the answer


async def test_a_verbose_answer_is_told_in_full(server, upstream):
    server.on(PATH, server.json(VERBOSE))
    assert await transcribe(STT(upstream)) == Transcription(
        "What time is it?", "en", 2.25, (Segment(0.0, 1.5, " What time is it?", -0.2, 1.1, 0.01),), ()
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"text": "Yes."}, Transcription("Yes.")),
        ({"text": ""}, Transcription("")),
        ({"text": "Ja.", "language": "de", "duration": "1.5"}, Transcription("Ja.", "de", 1.5)),
        ({"text": "Yes.", "segments": None}, Transcription("Yes.")),
        ({"text": "Yes.", "segments": []}, Transcription("Yes.")),
        ({"text": "Yes.", "language": 7, "duration": "long"}, Transcription("Yes.")),
        ({"text": "Yes.", "duration": 1e999, "usage": {"type": "duration"}}, Transcription("Yes.")),
        ({"segments": [{"text": " A"}, {"text": " b."}]},
         Transcription("A b.", segments=(Segment(0, 0, " A"), Segment(0, 0, " b.")))),
        ({"text": "A.", "segments": [{"text": " A.", "start": "x", "end": None}]},
         Transcription("A.", segments=(Segment(0, 0, " A."),))),
        ("Just text.", Transcription("Just text.")),
    ],
)  # fmt: skip
async def test_leaner_answers_are_understood(server, upstream, answer, expected):
    server.on(PATH, server.json(answer))
    assert await transcribe(STT(upstream)) == expected


@pytest.mark.parametrize("kind", ["text/plain", "text/plain; charset=utf-8", "application/octet-stream", "text/vtt"])
@pytest.mark.parametrize(("body", "text"), [
    (" Grüße an alle.\n", "Grüße an alle."), ("", ""), ("[Ann] says yes", "[Ann] says yes"),
    ('{"text": "Yes."}', "Yes."), ('"Yes."', "Yes."), ('"Yes," she said.', '"Yes," she said.'),
])  # fmt: skip
async def test_plain_text_is_understood_whatever_was_asked_for(server, upstream, kind, body, text):
    server.on(PATH, server.body(body.encode(), Content_Type=kind))
    assert (await transcribe(STT(upstream))).text == text


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ("[]", "application/json", "no transcript"),
        ("null", "application/json", "no transcript"),
        ("7", "application/json", "no transcript"),
        ("{}", "application/json", "no text"),
        ('{"text": null}', "application/json", "no text"),
        ('{"text": ["a"]}', "application/json", "no text"),
        ('{"text": "a", "segments": [1]}', "application/json", "a segment without text"),
        ('{"text": "a", "segments": [{"text": null}]}', "application/json", "a segment without text"),
        ('{"error": {"message": "out of memory"}}', "application/json", "an error: out of memory"),
        ('{"detail": "no such model"}', "text/plain", "an error: no such model"),
        ('{"text": "a', "application/json", "no JSON"),
        ("[" * 100_000, "application/json", "no JSON"),
        ("", "application/json", "no JSON"),
        ("<html><title>Oops</title>", "text/html", "a web page: Oops"),
        ("<!DOCTYPE html><p>Sign in", "text/plain", "a web page: Sign in"),
        ("RIFF....", "audio/wav", "audio/wav, not with a transcript"),
    ],
)
async def test_an_answer_that_is_no_transcript_is_an_error(server, upstream, body, kind, text):
    server.on(PATH, server.body(body.encode(), Content_Type=kind))
    with pytest.raises(UpstreamError) as caught:
        await transcribe(STT(upstream))
    assert text in caught.value.message
    assert (caught.value.outcome, caught.value.retryable) == ("invalid", True)


async def test_the_deadline_bounds_the_call(server, upstream):
    server.on(PATH, server.hang())
    with pytest.raises(DeadlineExceeded):
        await transcribe(STT(upstream), deadline=Deadline.after(0.1))
    await server.aborted.wait()


# --- servers that know but one format


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "response_format 'verbose_json' is not compatible with model"), (422, "bad"), (415, "bad"),
     (500, "unknown response_format")],
)  # fmt: skip
async def test_a_server_that_refuses_the_verbose_form_is_asked_for_json_and_remembered(
    server, upstream, status, message
):
    async def answer(request: Any) -> Any:
        verbose = sent(server)["response_format"] == b"verbose_json"
        return await (server.json({"error": message}, status) if verbose else server.json({"text": "Yes."}))(request)

    server.on(PATH, answer)
    stt = STT(upstream)
    assert (await transcribe(stt)).text == "Yes."
    before = len(server.seen)
    assert (await transcribe(stt)).text == "Yes."
    assert len(server.seen) == before + 1


async def test_audio_that_is_refused_in_both_forms_is_told_as_the_first_said_and_nothing_is_remembered(
    server, upstream
):
    server.on(
        PATH, server.json({"error": "bad audio"}, 400), server.json({"error": "bad audio!"}, 400), server.json(VERBOSE)
    )
    stt = STT(upstream)
    with pytest.raises(UpstreamError, match=r"bad audio$") as caught:
        await transcribe(stt)
    assert not caught.value.retryable
    await transcribe(stt)
    assert sent(server)["response_format"] == b"verbose_json"


@pytest.mark.parametrize("status", [401, 404, 413, 500])
async def test_a_refusal_for_something_else_is_not_taken_for_the_forms(server, upstream, status):
    server.on(PATH, server.json({"error": "no"}, status))
    with pytest.raises(UpstreamError):
        await transcribe(STT(upstream))
    assert {sent(server, n)["response_format"] for n in range(len(server.seen))} == {b"verbose_json"}


# --- what nobody said


def segment(text: str, **figures: Any) -> dict[str, Any]:
    return {**SAID, "text": text, **figures}


@pytest.mark.parametrize(
    ("item", "kept"),
    [
        (segment(" Thanks for watching!", no_speech_prob=0.9, avg_logprob=-1.4), False),
        (segment(" Thanks for watching!", no_speech_prob=0.9, avg_logprob=-0.3), True),
        (segment(" Thanks for watching!", no_speech_prob=0.2, avg_logprob=-1.4), True),
        (segment(" So so so so so so so so", compression_ratio=5.0), False),
        (segment(" I see. I see. I see. I see. I", compression_ratio=2.5), False),
        (segment(" ha" * 4, compression_ratio=2.0), True),
        (segment(" a long but honest list of many words", compression_ratio=2.6), True),
        (segment(" 哈哈哈哈哈哈哈哈哈哈哈哈", compression_ratio=3.0), False),
        (segment(" [BLANK_AUDIO]"), False),
        (segment(" (silence)"), False),
        (segment(" ♪ ♪"), False),
        (segment(" *coughs* [Music]"), False),
        (segment(" ..."), False),
        (segment(" (aside) yes"), True),
    ],
)
async def test_segments_are_judged_by_their_figures(server, upstream, item, kept):
    server.on(PATH, server.json({**VERBOSE, "text": SAID["text"] + item["text"], "segments": [SAID, item]}))
    found = await transcribe(STT(upstream), voiced=0.1)
    assert found.text == " ".join((SAID["text"] + item["text"] * kept).split())
    assert found.dropped == (() if kept else (item["text"].strip(),))
    assert len(found.segments) == 1 + kept


@pytest.mark.parametrize(
    "text",
    ["Thank you for watching!", "you", " You. ", "Thanks for watching.", "Subtitles by the Amara.org community",
     "Untertitel im Auftrag des ZDF, 2020", "Sous-titres réalisés par la communauté d'Amara.org",
     "Merci d'avoir regardé cette vidéo !", "¡Gracias por ver el video!", "Продолжение следует...",
     "Субтитры сделал DimaTorzok", "ご視聴ありがとうございました。", "谢谢观看!",
     "字幕由Amara.org社区提供", "시청해주셔서 감사합니다."],
)  # fmt: skip
async def test_without_figures_phantom_lines_go_only_where_little_voice_was_heard(server, upstream, text):
    stt = STT(upstream)
    for answer in ({"text": text}, {"text": text, "segments": [{"start": 0, "end": 1, "text": text}]}):
        server.on(PATH, server.json(answer))
        heard = await transcribe(stt, voiced=phantoms.LITTLE_SPEECH)
        assert (heard.text, heard.dropped) == (text.strip(), ())
        assert (await transcribe(stt)).text == text.strip()
        faint = await transcribe(stt, voiced=0.1)
        assert (faint.text, faint.dropped, faint.segments) == ("", (text.strip(),), ())


@pytest.mark.parametrize("text", ["Yes", "Stop.", "Thank you for the flowers", "Watch the subtitles", "Danke, Ann"])
async def test_other_short_lines_stay_however_little_was_heard(server, upstream, text):
    server.on(PATH, server.json({"text": text}))
    assert (await transcribe(STT(upstream), voiced=0.0)).text == text


async def test_names_of_sounds_are_no_words_even_without_figures(server, upstream):
    server.on(PATH, server.json({"text": " [BLANK_AUDIO]\n"}))
    found = await transcribe(STT(upstream))
    assert (found.text, found.dropped) == ("", ("[BLANK_AUDIO]",))


@given(st.text(max_size=300), st.integers(1, 30))
def test_the_gate_takes_any_text(text: str, times: int) -> None:
    for line in (text, text * times, json.dumps(text)):
        phantoms.is_annotation(line)
        phantoms.is_phantom(line)
        phantoms.is_loop(line)


@pytest.mark.parametrize("text", ["[" * 100_000, "*" * 100_000, "a b " * 50_000, "字幕" * 50_000])
def test_the_gate_takes_huge_text(text: str) -> None:
    assert not phantoms.is_annotation(text)
    assert not phantoms.is_phantom(text)
    phantoms.is_loop(text)


@pytest.mark.parametrize(
    ("name", "code"),
    [("english", "en"), ("English", "en"), ("en", "en"), ("pt_BR", "pt-br"), ("zh-Hans", "zh-hans"),
     ("Haitian Creole", "ht"), ("Klingon", None), ("", None),
     (None, None), (["en"], None), (" german ", "de"), ("yue", "yue")],
)  # fmt: skip
def test_languages_are_told_as_codes(name: object, code: str | None) -> None:
    assert code_of(name) == code
