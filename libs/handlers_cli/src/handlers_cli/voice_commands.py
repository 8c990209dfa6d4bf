"""The commands that speak and listen, with their options; what they do is in modules of their own."""

from pathlib import Path
from typing import Annotated

import typer

from handlers_cli.session import run, settings

Play = Annotated[bool, typer.Option("--play", help="Play it while it comes (needs the extra `audio`).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Language = Annotated[str | None, typer.Option(help="As `en` or `de-CH`.")]
Speaker = Annotated[str | None, typer.Option(help="A voice of `handlers voices`.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print the request's id on stderr.")]
Microphone = Annotated[bool, typer.Option("--microphone", "-m", help="The default microphone (extra `audio`).")]
Collection = Annotated[str | None, typer.Option(help="Collection to search.")]
Rag = Annotated[bool, typer.Option(help="Search for sources at all.")]
User = Annotated[str | None, typer.Option(help="As this user, on the user's own subjects.")]


def say(
    text: Annotated[str, typer.Argument(help="What to say; `-` reads stdin.", metavar="TEXT")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="WAV file to write, replacing one; `-` for a pipe.")
    ] = None,
    play: Play = False,
    speaker: Speaker = None,
    language: Language = None,
    speed: Annotated[float | None, typer.Option(help="1 is the voice's own pace.", min=0.25, max=4)] = None,
    session: Annotated[str | None, typer.Option(help="On the subjects of this session; else one of its own.")] = None,
    json: Json = False,
    verbose: Verbose = False,
    timeout: Annotated[float, typer.Option(help="Seconds until all has to be spoken.", min=0.1)] = 120.0,
) -> None:
    """Have a text spoken, and write or play the audio as it comes.

    Ctrl-C cancels the request; a file is written whole or not at all.
    """
    from handlers_cli.say import Options, say

    fields = {"text": text, "speaker": speaker, "language": language, "speed": speed, "session_id": session}
    run(say(settings(), fields, Options(output, play, json, timeout, verbose)))


def voices(
    refresh: Annotated[bool, typer.Option("--refresh", help="Have the module look for them anew first.")] = False,
    json: Json = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for NATS, and for the reply.", min=0.1)] = 10.0,
) -> None:
    """List the voices that a text can be spoken with."""
    from handlers_cli.voices import voices

    run(voices(settings(), refresh=refresh, json=json, wait=wait))


def listen(
    file: Annotated[
        str | None, typer.Argument(help="A WAV file; `-` for a pipe of WAV or raw PCM.", metavar="FILE")
    ] = None,
    microphone: Microphone = False,
    rate: Annotated[int | None, typer.Option(help="Of raw PCM (16 bit): hertz, 16000 in a pipe.", min=4000)] = None,
    channels: Annotated[int | None, typer.Option(help="Of raw PCM: channels, 1.", min=1, max=8)] = None,
    chunk_ms: Annotated[int, typer.Option(help="Milliseconds of one chunk.", min=10, max=1000)] = 20,
    fast: Annotated[bool, typer.Option("--fast", help="As fast as it is taken, not at the pace of speech.")] = False,
    partials: Annotated[
        bool | None,
        typer.Option("--partials/--no-partials", help="While somebody speaks; else only on a terminal."),
    ] = None,
    language: Language = None,
    session: Annotated[str | None, typer.Option(help="The session's name; else one of its own.")] = None,
    user: Annotated[
        str | None, typer.Option(help="Whose session it is, where stt_module believes it (SESSION_USERS).")
    ] = None,
    respond: Annotated[bool, typer.Option("--respond", help="Have each transcript answered by voice.")] = False,
    play: Play = False,
    answers: Annotated[
        Path | None, typer.Option(help="With --respond: a folder for the answers' WAV files.", metavar="FOLDER")
    ] = None,
    speaker: Speaker = None,
    collection: Collection = None,
    rag: Rag = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, of every event.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for what comes after the audio, and an answer.")] = 120.0,
) -> None:
    """Transcribe audio live: what is said, as it is understood, with its place in the audio.

    Ctrl-C ends the session and prints what it has heard. With --respond each final transcript is a turn of
    voice_assistant, and speaking while its answer plays interrupts it.
    """
    from handlers_cli.listen import Options, listen

    place = _place(file, microphone)
    options = Options(
        place=place,
        rate=rate,
        channels=channels,
        chunk_ms=chunk_ms,
        fast=fast,
        partials=partials,
        json=json,
        respond=respond,
        play=play,
        answers=answers,
        timeout=timeout,
        config={"session_id": session, "user_id": user, "language": language},
        turn={"speaker": speaker, "collection": collection, "enable_rag": rag},
    )
    run(listen(settings(), options))


def talk(
    file: Annotated[str | None, typer.Argument(help="A WAV, MP3, OGG, … file; `-` for stdin.", metavar="FILE")] = None,
    microphone: Microphone = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="WAV file for the answer, replacing one; `-` for a pipe."),
    ] = None,
    play: Play = False,
    ask: Annotated[bool, typer.Option("--ask", help="By request/reply: nothing is queued, nothing streamed.")] = False,
    user: User = None,
    session: Annotated[str | None, typer.Option(help="Go on with, or begin, the conversation of this name.")] = None,
    language: Language = None,
    speaker: Speaker = None,
    collection: Collection = None,
    top_k: Annotated[int, typer.Option(help="Sources for the answer.", min=1, max=100)] = 5,
    rag: Rag = True,
    request_id: Annotated[str | None, typer.Option(help="Name the turn; a name used before gives that answer.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Draw the stages as a waterfall.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait in all.", min=0.1)] = 120.0,
) -> None:
    """Ask by voice: what was understood, the answer as it is written, its sources, and a WAV file of it.

    Without -o the answer goes beside the question as NAME.answer.wav, under a name that is not taken; with --play alone
    nowhere. From the microphone silence or Enter ends the question. Ctrl-C cancels the turn.
    """
    from handlers_cli.talk import Options, talk

    fields = {
        "user_id": user,
        "session_id": session,
        "language": language,
        "speaker": speaker,
        "collection": collection,
        "top_k": top_k,
        "enable_rag": rag,
        "enable_streaming": not ask,
        "request_id": request_id,
    }
    place = _place(file, microphone)
    options = Options(place, output, play, ask, json, trace, verbose, timeout)
    run(talk(settings(), fields, options))


def _place(file: str | None, microphone: bool) -> str | None:
    if (file is None) is not microphone:
        raise typer.BadParameter("give a FILE, or -, or --microphone, and only one of them", param_hint="FILE")
    return file
