"""Forms: multipart or URL-encoded bodies."""

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import MultiDict

from local_inference.errors import ApiError

Form = MultiDict[str | bytes]
"""Text as str; files, and parts of a type other than text, as bytes."""

_FORM: web.RequestKey[Form] = web.RequestKey("form")


async def receive(request: web.Request) -> None:
    """Read the whole body, of whatever kind; it can be had again from `request.read()` or `read_form`.

    Raises:
        ApiError: it calls itself a form but is none.
    """
    if request.content_type == "multipart/form-data":
        await read_form(request)
    else:
        await request.read()


async def read_form(request: web.Request) -> Form:
    """The body's fields; none where it is no form.

    Raises:
        ApiError: it calls itself a form but is none.
    """
    if _FORM not in request:
        is_multipart = request.content_type == "multipart/form-data"
        try:
            # aiohttp's own `post` would put files into temporary ones.
            request[_FORM] = await _multipart(request) if is_multipart else Form(await request.post())  # type: ignore[arg-type]
        except (ValueError, LookupError, RuntimeError, HttpProcessingError) as error:
            raise ApiError(400, f"the body is not the form that it says it is: {error}") from None
    return request[_FORM]


async def _multipart(request: web.Request) -> Form:
    form = Form()
    size = 0
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader) or part.name is None:
            raise ValueError("a part has no name")
        data = bytes(await part.read(decode=True))
        size += len(data)
        if size > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        is_text = not part.filename and part.headers.get("Content-Type", "text/plain").startswith("text/")
        form.add(part.name, data.decode(part.get_charset("utf-8")) if is_text else data)
    return form
