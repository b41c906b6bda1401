"""The numbers and marks that data and models agree on."""

IMAGE_ID = -200
"""Stands in the token ids for one image; models put the image's tokens in its place."""

MEDIA_IDS = {"image": IMAGE_ID, "audio": -300, "video": -400, "speech": -500}
"""Placeholder of each kind of media: LLaVA-1.5's and Uni-MoE's values; Uni-MoE has none for speech apart from sound.

An image or video has one, speech and sound one a chunk.
"""

MEDIA_MARKS = {"image": "<image>", "audio": "<audio>", "video": "<video>", "speech": "<speech>"}
"""What stands in a dialogue's text where an item of that kind belongs."""

IGNORE_ID = -100
"""Label of a position that has no target."""

ROUTING_VIEW = "image.routing"
"""Beside each image of a MoVA, (I, E): 1 where an expert is routed to it; -1 throughout in a routing pass."""

QUESTION_VIEW = "image.question"
"""Beside each image of a MoVA, (I, L): ids of its questions for the gate."""

GLANCE_VIEW = "image.glance"
"""Names the fewer positions of an image in a routing pass."""

CANVAS_VIEW = "image.canvas"
"""Of the images that an answer asks to be drawn, what the image decoder learns to draw: pixels, or its own features."""

LETTERS_VIEW = "image.letters"
"""Of the same images, (I, L): places among the ids of the letters that an image is asked to show, -1 behind them."""

TASKS = ("image_generation", "text_generation")
"""What an answer is, by number; -1 stands for nobody said."""
