from handler_core import lazy

lazy.switch_on()

from pipeline_bridge.service import service  # noqa: E402 - lazily, where Python can

if __name__ == "__main__":
    service.main()
