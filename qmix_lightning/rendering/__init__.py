"""Draw environments, record episodes, and show them: as video, in a window, and on a page."""
