"""How the page looks and how it is served."""

import gradio as gr


# Gradio's colours in light and dark, the system's own fonts: the page asks no other host for anything.
THEME = gr.themes.Soft(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"])
CSS = """
.gradio-container {max-width: 1180px !important; margin: auto; overflow: clip !important}
#introduction p {font-size: 1.15em}
#driving video, #result video, #side-by-side video, #person-result video {max-height: 420px}
#preview img, #live-result img, #person-preview img {width: 100%; height: 100%; object-fit: contain}
#responsible-use {opacity: 0.75}
#origin .card {display: flex; gap: 1em; padding: 1em; border-radius: 8px;
    border: 2px solid var(--border-color-primary)}
#origin .sign {flex: none; width: 1.6em; font-size: 2em; line-height: 1.1; text-align: center}
#origin h3 {margin: 0 0 0.4em}
#origin p {margin: 0 0 0.6em}
#origin dl {display: grid; grid-template-columns: max-content 1fr; gap: 0.2em 1em; margin: 0}
#origin dt {opacity: 0.75}
#origin dd, #origin-fields * {overflow-wrap: anywhere; min-width: 0}
#origin dd {margin: 0}
.notes {border-left: 4px solid var(--color-accent); padding: 0.3em 0.8em}
.notes .notes {border: none; padding: 0}
input[type=checkbox] {border: 1px solid var(--body-text-color-subdued) !important}
.job-progress progress {width: 100%; height: 0.6em; appearance: none; border: none}
.job-progress progress, .job-progress progress::-webkit-progress-bar {background: var(--border-color-primary);
    border-radius: 1em; overflow: hidden}
.job-progress progress::-webkit-progress-value {background: var(--color-accent)}
.job-progress progress::-moz-progress-bar {background: var(--color-accent)}
.job-progress p {margin: 0.2em 0}
/* what has nothing to say when all is done leaves no gap; before that it shows the place in the line */
#result-column:has(#result) > #progress:not(:has(progress)), #result-column:has(#result) > #result-notes:not(:has(p)),
#person-column:has(#person-kept) > #person-progress:not(:has(progress)) {display: none}
#portraits .grid-wrap {padding-top: 2.8em !important}
#opening-on-phone {display: none}
.opening video {width: 100%; border-radius: 8px; display: block}
.opening p {margin: 0.3em 0; font-size: 0.9em; opacity: 0.75}
.thumbnails, .thumbnails .grid-wrap {min-height: 0 !important}
.thumbnails .grid-wrap {padding-top: 2.8em !important}
.thumbnails .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}
.faces .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr)) !important}
.thumbnails button, .faces .grid-container button {min-width: 0 !important}
.thumbnails .caption-label {font-size: 0.65em; inset: auto 0.2em 0.2em 0.2em; padding: 0.1em 0.3em}
#motions img {background: black}
#expression-column {position: sticky; top: 0; z-index: 4; align-self: flex-start;
    background: var(--body-background-fill)}
#expression-picture img {width: 100%; height: 100%; object-fit: contain}
#chips {gap: 0.4em}
.control {padding-block: 0.2em !important}
#person-placeholder {border: 2px dashed var(--border-color-primary); border-radius: 8px;
    min-height: 300px; opacity: 0.75; display: flex; align-items: center; justify-content: center; text-align: center}
.faces, .faces .grid-wrap {min-height: 0 !important}
.faces .grid-wrap {padding-top: 2.8em !important}
.faces .caption-label {font-size: 0.7em; inset: auto 0.2em 0.2em 0.2em; padding: 0.1em 0.3em}
.faces .caption-label, .thumbnails .caption-label {white-space: normal; line-height: 1.2}
.source-selection {position: absolute; bottom: 0; left: 0; right: 0; background: var(--block-background-fill)}
:focus-visible {outline: 3px solid var(--color-accent) !important; outline-offset: 2px}
/* five tabs side by side on a phone: those that do not fit Gradio hides in a menu */
@media (max-width: 699px) {
    #tabs .tab-wrapper button {padding-inline: 0.35em; font-size: 0.8em}
    #opening-on-phone {display: block}
    #opening {display: none}
    #expression-picture {height: 240px !important}
    #preview, #result, #result video {max-height: 340px !important}
    #origin .card {padding: 0.7em; gap: 0.5em}
    #origin dl {column-gap: 0.6em}
}
footer {display: none !important}
"""
LAUNCH_OPTIONS = {
    "theme": THEME,
    "css": CSS,
    "max_file_size": "64mb",
    "footer_links": [],
    "run_history": False,  # Gradio would keep what was made in the browser
    "mcp_server": False,
    "ssr_mode": False,
}
