"""The wire contract: subjects and message models, one module a family.

Messages are MessagePack maps with snake_case keys. Unknown fields are ignored and missing optional ones have
defaults, so that old and new peers mix. Times are Unix seconds (float). Nothing here imports the rest of the
library: a client in another code base can take this package alone.
"""
