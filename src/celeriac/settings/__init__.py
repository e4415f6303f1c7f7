"""What an app can be told: every setting with its type, unit, default and meaning, and how it is read.

`fields` and `stores` declare the settings, `kinds` says what values they take, `sources` reads them from modules
and dicts in any spelling (`names`), `checks` finds contradictions, and `Settings` is what an app holds.
"""

from __future__ import annotations

from celeriac.settings.field import FIELDS, Field
from celeriac.settings.settings import DISABLED_URL, EMBEDDED_URL, Settings

__all__ = ["DISABLED_URL", "EMBEDDED_URL", "FIELDS", "Field", "Settings"]
