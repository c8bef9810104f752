"""Real data that the dependencies ship, the field's file formats, and the synthetic generators that papers define."""
